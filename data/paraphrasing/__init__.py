"""Ask a chat model, or rules, for paraphrases of captions, and keep what they answer."""
