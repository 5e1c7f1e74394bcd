"""Import features that other programs have extracted, with the same shards and markers as an extraction.

Owns the layouts of region features that VisualBERT and similar models use, and what counts as malformed:

- `bua-tsv`    rows of tools/generate_tsv.py of peteanderson80/bottom-up-attention: base64 float32, no header
- `lxmert-tsv` rows of airsplay/lxmert (obj36): as `bua-tsv`, with objects and attributes
- `mmf-npy`    a folder of NAME.npy and NAME_info.npy, written by facebookresearch/mmf's extract_features_*.py
- `mmf-lmdb`   an LMDB that mmf's lmdb_conversion.py made from such a folder
- `milvlg-npz` a folder of NAME.npz, written by MILVLG/bottom-up-attention.pytorch
- `bua-hdf5`   NAME.hdf5 and NAME_imgid2idx.pkl, made from bottom-up attention's TSV for VQA

The files do not say which program made the features. So the fingerprint says "imported" and "unverified", and holds
the layout and the digest of the source; the user gives the name of the feature space. Boxes are pixels of the original
image, as in all six layouts, unless the user declares another convention. A source that contradicts its declaration is
refused before anything is written (`checks.py`). An unknown label is -1, an unknown score is NaN, an unknown image
digest is "". A record that cannot be read becomes a failure with its reason. Pickles may hold only arrays,
dictionaries, strings and numbers (`io/safe_pickle.py`).
"""

INGREDIENT = "features"
