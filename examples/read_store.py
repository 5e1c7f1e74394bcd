"""Read a feature store: one image by its id, then all images in turn.

python examples/read_store.py STORE
"""

import sys
from pathlib import Path

from visualbert_core import FeatureStore

if __name__ == "__main__":
    store = FeatureStore.open(Path(sys.argv[1]))
    regions = store.fetch(store.image_ids[0])
    print(regions.image_id, "boxes", regions.boxes.shape, "features", regions.features.shape, regions.features.dtype)
    print("regions of all images:", sum(regions.num_regions for regions in store.scan()))
