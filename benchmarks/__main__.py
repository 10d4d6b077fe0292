"""Every benchmark in its short form: `make bench`."""

from benchmarks import backend_call, drain, paced, priority, publisher, simulated, view

drain.main(6_000, 3)
paced.main()
backend_call.main()
view.main(50_000)
publisher.main()
priority.main(20_000, 8)
simulated.main(300)
