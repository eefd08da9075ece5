import logging

from ocdit_ros.log_forwarding import LogForwarding


def test_warnings_of_the_core_are_passed_on_until_it_is_closed():
    seen = []
    forwarding = LogForwarding(seen.append)
    logger = logging.getLogger("ocdit_core.inference.memory")
    logger.warning("out of memory:\n%d at once from now on", 4)
    logger.info("nothing of importance")
    logging.getLogger("somebody.else").warning("not ours")
    assert seen == ["out of memory: 4 at once from now on"]
    forwarding.close()
    logger.warning("too late")
    assert len(seen) == 1
