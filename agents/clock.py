from wire.clock import *  # noqa: F403
