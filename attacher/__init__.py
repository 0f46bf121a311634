"""Conducts: command line, session, the target seen from outside, ptrace, the drain loop."""
