"Imported by the fork server: everything is imported and the table packed before the first process is forked."
import bioai_esol.serving  # noqa: F401
import quick
from bioai_esol.data import esol
from bioai_esol.training import TrainConfig

quick.install()
quick.make_task(esol(), TrainConfig())
