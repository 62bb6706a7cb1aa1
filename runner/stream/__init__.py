"""Loading a model while it still arrives: the runner fetches and proves, an engine reads what is proven."""
