"""A real instance tells a real receiver of a job, from the request to the script in the guest."""

from tests.e2e.conftest import an_instance
from tests.otlp_receiver import receiver


def test_traces_lead_from_the_request_to_the_script_in_the_guest() -> None:
    with receiver() as told:
        with an_instance("--otlp-endpoint", told.url) as roost:
            roost.start()
            ended = roost.api.run("echo $TRACEPARENT; exit 3")
            kept = roost.api.submit("echo up", persistent=True)
            roost.api.said(kept, b"up")
            assert roost.api.exec(kept, "exit 4")["exit_code"] == 4
        request_id = ended.request_id  # all is sent when Roost has stopped
        job = told.one("job", lambda span: span.attributes["request_id"] == request_id)
        script = told.one("script", lambda span: span.attributes["request_id"] == request_id)
        start = told.one("node.start_sandbox", lambda span: span.attributes["request_id"] == request_id)
        (request,) = [span for span in told.named("POST /api/v1/mags-jobs") if span.id == job.parent]
        assert ended.text.strip() == f"00-{request.trace_id}-{script.id}-01"
        assert (script.parent, start.parent) == (job.id, job.id)
        assert script.trace_id == start.trace_id == job.trace_id == request.trace_id
        assert script.attributes["exit_code"] == job.attributes["exit_code"] == 3
        assert request.begun_ns <= job.begun_ns <= start.begun_ns <= script.begun_ns <= script.ended_ns <= job.ended_ns
        command = told.one("exec")
        (asked,) = told.named("POST /api/v1/mags-jobs/{id}/exec")
        assert (command.parent, command.attributes["exit_code"]) == (asked.id, 4)
