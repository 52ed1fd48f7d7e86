"""The fixtures are notebooks with faults: only the tests of the guards open them."""

collect_ignore_glob = ["fixtures/*"]
