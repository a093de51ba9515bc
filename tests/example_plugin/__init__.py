"""A package of somebody else's, with one part of each kind: `plugins=[example_plugin]` admits it."""
