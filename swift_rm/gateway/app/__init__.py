"""The gateway's application: routes, who may ask, completions and the page."""
