"""Paraphrasing of captions: ask a chat model, or apply rules, check the answers, and keep them."""
