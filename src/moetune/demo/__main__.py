"""``python -m moetune.demo`` prints where the demo model lies."""

from moetune.demo import demo_model_path

print(demo_model_path())
