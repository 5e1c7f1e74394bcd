"""Files: paths on a disk or in an object store, strict JSON and YAML, safe pickles, and the one reader of weights."""
