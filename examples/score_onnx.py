"""Scores an image by a model that `python -m hta.export` wrote, without torch and hta: score_onnx.py MODEL IMAGE"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
pixels = np.asarray(ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB"), np.float32) / 255
score, shares, anomaly_map = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
decides = score if about["decided_by"] == "anomaly_score" else anomaly_map
print(sys.argv[2], score[0], "reject" if decides.max() > float(about["limit"]) else "pass")
