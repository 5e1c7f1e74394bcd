"""The corpus: the images that a job works on.

`listing` gives every image an id. `sources` and `parquet_images` find where each image lies. `images` decodes it.
`string_column` keeps millions of ids in little memory.
"""

INGREDIENT = "features"
