"""What goes wrong on the way to an answer."""


class ClientError(Exception):
    """The server refused the request or cannot be reached; `status` is None when no answer came.

    `code` and `param` are the server's, `request_id` is what its log knows the request by, and `retry_after` are the
    seconds that it asked to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        may_retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after
        self.may_retry = may_retry
        """whether the same request may succeed when it is sent again"""
