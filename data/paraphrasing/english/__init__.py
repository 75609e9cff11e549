"""English of captions: verbs and their forms, and the clauses that captions consist of."""
