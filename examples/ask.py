"""Ask VisualBERT one question about one image of a feature store.

python examples/ask.py MODEL STORE IMAGE_ID "how many circles are there?"
"""

import sys
from pathlib import Path

from visualbert_core import FeatureStore, load_model
from visualbert_core.schema import Failure, Question

if __name__ == "__main__":
    model_folder, store_folder, image_id, text = sys.argv[1:]
    model = load_model(model_folder, Question, device="cpu")
    regions = FeatureStore.open(Path(store_folder)).fetch(image_id)
    (prediction,) = model.predict([(Question("1", (image_id,), text), (regions,))])
    if isinstance(prediction, Failure):
        sys.exit(prediction.message)
    print(f"{prediction.answer} ({prediction.scores[0]:.0%})")
