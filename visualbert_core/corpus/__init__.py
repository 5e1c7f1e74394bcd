"""Images: which a corpus has (`listing`), where they lie (`sources`, `parquet_images`), their pixels (`images`)."""

INGREDIENT = "features"
