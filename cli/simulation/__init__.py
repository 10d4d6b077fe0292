"""`triage bench --simulate`: the worker's own Dispatcher in virtual time, against modelled loads and model servers."""
