"""Commands about models that ask a running server: `quire pull | list | ps | show | stop | cp | rm`."""
