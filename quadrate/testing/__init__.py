"""Parts for tests, ours and those of projects that build on Quadrate: a trace receiver, a fake worker, free ports."""
