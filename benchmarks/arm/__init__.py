"""Executed instructions on emulated ARM cores: ours and the peers', exact, for lack of a board; see docs/arm.md."""
