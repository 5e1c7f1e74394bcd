"""Features that others have extracted → feature store, by the same shards and markers as an extraction.

Owns the layouts in which region features of VisualBERT's kind lie about, and what counts as malformed:

- `bua-tsv`    rows of tools/generate_tsv.py of peteanderson80/bottom-up-attention: base64 float32, no header
- `lxmert-tsv` rows of airsplay/lxmert (obj36): the same with objects and attributes
- `mmf-npy`    a folder of NAME.npy and NAME_info.npy, written by facebookresearch/mmf's extract_features_*.py
- `mmf-lmdb`   mmf's lmdb_conversion.py of such a folder
- `milvlg-npz` a folder of NAME.npz, written by MILVLG/bottom-up-attention.pytorch
- `bua-hdf5`   NAME.hdf5 and NAME_imgid2idx.pkl, made of bottom-up attention's TSV for VQA

What made the features cannot be known, so the fingerprint says "imported, unverified", names the layout and the digest
of the source, and takes the name of the space from whoever imports. Boxes are taken as pixels of the original image,
as all of them write them, unless another convention is declared; a source that contradicts this is refused before
anything is written (`checks.py`). An unknown label is -1, an unknown score NaN, an unknown image digest "". A row that
cannot be read is a failure with the reason. Pickles may hold arrays and nothing else (`pickles.py`).
"""

INGREDIENT = "features"
