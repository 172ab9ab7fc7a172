"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# How long an example takes is no property of what is tested, and other work on the machine decides
# it: a test that hangs is ended by pytest's time-out.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")
