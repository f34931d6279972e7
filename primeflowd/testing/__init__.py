"""For tests of plugins, and primeflowd's own. Needs the extra `primeflowd[test]`.

Public are:

- `storage_conformance.StorageConformance`: every promise of a storage, as a suite to subclass
- `fixtures`: pytest fixtures `daemon`, `daemon_settings`, `receiver` and `receiver_script`, by
  `pytest_plugins = ["primeflowd.testing.fixtures"]` in a `conftest.py`
- `daemon_process.DaemonProcess`, `daemon_process.eventually`: the real daemon, from outside
- `receiver_process.ReceiverProcess`, `receiver_process.Arrival`: a receiver beside it
- `receiver.open_receiver`, `receiver.Receiver`, `receiver.Received`, `receiver.Answer`,
  `receiver.Script`: a receiver inside a Trio test; `python -m primeflowd.testing.receiver`
- `cluster.Cluster`, `cluster.Node`: several real nodes on one storage; `load.Load`,
  `load.Receivers`: what keeps them busy; `mishaps.Kills`: what befalls them; `audit.Audit`,
  `audit.Incident`: whether all that was accepted was sent, and was sent once
- `factories`: valid values of `primeflowd.model` with a default for each field

These follow the hooks: what is right with one `hookspecs.HOOK_API` stays right until that number
changes. Two things may come at any time, with a line in the changelog: a further promise in the
conformance suite, where a storage could break the daemon unnoticed, and a further field, argument
or fixture. All else in here is not public.
"""
