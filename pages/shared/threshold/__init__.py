"""The threshold page's pieces: the rule and its line, what is dragged, the surface, people's verdicts, and the list on its way out."""
