"""English of captions: verbs and their forms, clauses, the words that link them, and synonyms."""
