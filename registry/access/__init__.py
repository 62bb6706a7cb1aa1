"""Who may do what: principals, what proves them, and the rules about them."""
