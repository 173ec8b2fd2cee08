"""The sandbox: every supported provider's HTTP API on this machine, with its documented rules and with faults on order.

It is the independent judge of the promise: its log of acceptances says what a provider would have sent. It shares with
the rest only the providers' contracts.
"""
