"""What goes wrong, and how the client is told."""

import json
import os

from inferencesh import APIError, inference

URL, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
client = inference(api_key=KEY, base_url=URL)
told = {}


def attempt(name, what):
    try:
        what()
        told[name] = "no error"
    except APIError as error:
        told[name] = [error.status_code, error.code, error.message]
    except RuntimeError as error:
        told[name] = str(error).splitlines()[0]


def run(**params):
    return lambda: client.run({"app": "probe", "input": {}, **params})


session = client.run({"app": "probe", "input": {}, "session": "new", "session_timeout": 60})["session_id"]
attempt("unknown", run(session="sess_abc123"))
attempt("nobodys", run(session="0197aaaa-0000-7000-8000-000000000000"))
attempt("foreign", run(session=os.environ["FOREIGN"]))
attempt("foreign_info", lambda: client.sessions.get(os.environ["FOREIGN"]))
attempt("foreign_end", lambda: client.sessions.end(os.environ["FOREIGN"]))
attempt("foreign_task", lambda: client.get_task(os.environ["FOREIGN_TASK"]))
attempt("other_app", run(app="my-app", session=session))
attempt("other_version", run(app="probe@7", session=session))
attempt("no_app", run(app="nosuch"))
attempt("bad_app", run(app="a/b/c"))
attempt("timeout_of_reuse", run(session=session, session_timeout=5))
attempt("timeout_too_long", run(session="new", session_timeout=3601))
attempt("timeout_zero", run(session="new", session_timeout=0))
attempt("no_function", run(function="nosuch", session=session))
attempt("too_large", run(input={"text": "x " * 3_000_000}, session=session))
attempt("unknown_field", run(run_at="2027-01-01T00:00:00Z"))
attempt("setup", run(setup={"model": "large"}))
attempt("no_key", lambda: inference(api_key="nobody.nothing", base_url=URL).sessions.list())
attempt("no_task", lambda: client.get_task("nosuch"))
attempt("raised", run(function="fail", session=session))
told["lives"] = client.run({"app": "probe", "input": {}, "session": session})["output"]["count"]
attempt("died", run(function="die", session=session))
attempt("after_death", run(session=session))
told["lost"] = [client.sessions.get(session)[name] for name in ("status", "end_reason")]
ended = client.run({"app": "probe", "input": {}, "session": "new"})["session_id"]
told["finish"] = client.run({"app": "probe:finish", "input": {}, "session": ended})["output"]
attempt("after_finish", run(session=ended))
client.sessions.end(ended)
print(json.dumps(told))
