"""Extract the region features of a folder of images into a feature store.

python examples/extract.py IMAGES DETECTOR STORE_ROOT
"""

import sys
from pathlib import Path

from visualbert_core import ExtractConfig, Pool, PoolConfig, extract

if __name__ == "__main__":
    images, detector, root = map(Path, sys.argv[1:])
    with Pool(PoolConfig(inline=True)) as pool:  # without inline=True: Ray actors, one for each GPU
        store = extract(ExtractConfig(images=images, detector=detector, out=root), pool)
    print(f"{store.folder}: {len(store)} images, {store.feature_size} numbers a region")
