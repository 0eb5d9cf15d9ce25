"""Methods, one file a paper. The folder's listing is the registry."""
