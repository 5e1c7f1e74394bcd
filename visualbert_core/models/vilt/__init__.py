"""ViLT: a transformer over word pieces and image patches, without a detector (Kim et al. 2021, arXiv:2102.03334)."""

INGREDIENT = "predictions"
