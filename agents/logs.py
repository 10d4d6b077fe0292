from wire.logs import *  # noqa: F403
