"Imported by the fork server: everything is imported and the table packed before the first process is forked."
import bioai_esol.serving.predictor  # noqa: F401
import quick
from bioai_esol.chem.dataset import load_esol
from bioai_esol.training.config import TrainConfig

quick.install()
quick.make_task(load_esol(), TrainConfig())
