"""Keep clips that models are judged by out of training: by their ids, and by their sound."""
