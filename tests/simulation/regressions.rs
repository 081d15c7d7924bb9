//! Cases that failed once, shrunk by chance and by hand, and some that chance hardly ever draws. The
//! mutations meet them first.

use super::{Worker, operation::Case};

/// What must hold, and the case as it was printed.
const REGRESSIONS: &[(&str, &str)] = &[
    (
        "a task that is open again after an error keeps the time of its first lease",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Advance": 1},
                {"Retry": {"tasks": [0], "more": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that completes by the resolution of its last failed step ends then, not when it failed",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Advance": 1},
                {"Move": {"to": "Resolve", "steps": [{"pick": 0, "blind": false}], "more": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a step whose parent is resolved waits for nothing, though a step before that one is cancelled",
        r#"{
            "dags": [{"steps": [
                {"parents": [], "queue": 0, "max_attempts": 1},
                {"parents": [0], "queue": 0, "max_attempts": 1},
                {"parents": [1], "queue": 0, "max_attempts": 1}
            ], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Move": {"to": "Resolve", "steps": [{"pick": 1, "blind": false}], "more": null}},
                {"Move": {"to": "Cancel", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Claim": {"node": 0, "slots": [3], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Move": {"to": "Retry", "steps": [{"pick": 0, "blind": false}], "more": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a row that an attempt before left behind does not shorten the wait for the next one",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Move": {"to": "TimeOut", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Move": {"to": "Retry", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": 5000}, "slots": 0, "again": null}]}},
                {"Claim": {"node": 0, "slots": [1], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a row that an attempt before left behind leases nothing",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Move": {"to": "TimeOut", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Move": {"to": "Retry", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": 0}, "slots": 0, "again": null}]}},
                {"Claim": {"node": 0, "slots": [1], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a timer that an attempt before left behind makes nothing ready",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": 5000}, "slots": 0, "again": null}]}},
                {"Move": {"to": "TimeOut", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Move": {"to": "Retry", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": 0}, "slots": 0, "again": null}]}},
                {"Advance": 6000},
                {"Release": 9}
            ],
            "after": []
        }"#,
    ),
    (
        "a step in error of a task that is resolved is not tried again",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Resolve": {"tasks": [0]}},
                {"Move": {"to": "Retry", "steps": [{"pick": 0, "blind": false}], "more": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "an adopted lease is safe from the session that held it before",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Adopt": {"node": 1, "session": 0, "held": [{"pick": 0, "late": false, "foreign": false}]}},
                {"Lose": {"session": 0, "endings": ["HandBack"]}}
            ],
            "after": []
        }"#,
    ),
    (
        "an adopted lease is safe from who walks the node that gave it",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Adopt": {"node": 1, "session": 0, "held": [{"pick": 0, "late": false, "foreign": false}]}},
                {"Retire": {"node": 0}},
                {"Walk": {"node": 0, "ending": "HandBack", "forget": true}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that is resolved is cancelled by who overrides",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Resolve": {"tasks": [0]}},
                {"Cancel": {"tasks": [0], "overriding": false}},
                {"Cancel": {"tasks": [0], "overriding": true}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that is complete is cancelled by who overrides",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}]}},
                {"Cancel": {"tasks": [0], "overriding": false}},
                {"Cancel": {"tasks": [0], "overriding": true}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that waits, runs or is in error is paused and goes on, and a repeat does nothing",
        r#"{
            "dags": [{"steps": [
                {"parents": [], "queue": 0, "max_attempts": 1},
                {"parents": [], "queue": 0, "max_attempts": 1}
            ], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Pause": {"tasks": [0, 0], "paused": true}},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Pause": {"tasks": [0], "paused": false}},
                {"Claim": {"node": 0, "slots": [2], "from": null}},
                {"Pause": {"tasks": [0], "paused": true}},
                {"Pause": {"tasks": [0], "paused": true}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": 0}, "slots": 0, "again": null}]}},
                {"Pause": {"tasks": [0], "paused": false}},
                {"Move": {"to": "TimeOut", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Pause": {"tasks": [0], "paused": true}},
                {"Retry": {"tasks": [0], "more": null}},
                {"Claim": {"node": 0, "slots": [2], "from": null}},
                {"Cancel": {"tasks": [0], "overriding": false}},
                {"Pause": {"tasks": [0], "paused": false}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task in error is paused and goes on",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Move": {"to": "TimeOut", "steps": [{"pick": 0, "blind": false}], "more": null}},
                {"Pause": {"tasks": [0], "paused": true}},
                {"Pause": {"tasks": [0], "paused": false}}
            ],
            "after": []
        }"#,
    ),
    (
        "a child of a paused task gets no slot",
        r#"{
            "dags": [{"steps": [
                {"parents": [], "queue": 0, "max_attempts": 1},
                {"parents": [0], "queue": 0, "max_attempts": 1}
            ], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Pause": {"tasks": [0], "paused": true}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 255, "again": null}]}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that is in error has ended, and its deadline ends nothing of it",
        r#"{
            "dags": [{"steps": [
                {"parents": [], "queue": 0, "max_attempts": 1},
                {"parents": [0], "queue": 0, "max_attempts": 1}
            ], "backwards": false, "rules": {"deadline": 1000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Advance": 2000},
                {"Release": 9}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that is open again has its whole time again",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"deadline": 1000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Advance": 500},
                {"Retry": {"tasks": [0], "more": null}},
                {"Advance": 600},
                {"Release": 9},
                {"Advance": 600},
                {"Release": 9}
            ],
            "after": []
        }"#,
    ),
    (
        "a deadline ends what runs",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"deadline": 1000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Advance": 1000},
                {"Release": 9},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}]}}
            ],
            "after": []
        }"#,
    ),
    (
        "a step that is retried by hand has its whole time again",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"total_timeout": 1000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Advance": 500},
                {"Retry": {"tasks": [0], "more": null}},
                {"Advance": 600},
                {"Release": 9},
                {"Advance": 600},
                {"Release": 9}
            ],
            "after": []
        }"#,
    ),
    (
        "a step that was taken in time waits anew for its next attempt",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"queue_timeout": 1000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Advance": 500},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": 0}, "slots": 0, "again": null}]}},
                {"Advance": 600},
                {"Release": 9},
                {"Advance": 600},
                {"Release": 9}
            ],
            "after": []
        }"#,
    ),
    (
        "a step whose time is up makes room for another",
        r#"{
            "dags": [{"steps": [
                {"parents": [], "queue": 0, "max_attempts": 1},
                {"parents": [], "queue": 0, "max_attempts": 1}
            ], "backwards": false, "rules": {"max_parallel": 1, "total_timeout": 1000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Advance": 1000},
                {"Release": 9},
                {"Claim": {"node": 0, "slots": [1], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a step that is handed back has what is left of its time",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"total_timeout": 1000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Advance": 500},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "HandBack", "slots": 0, "again": null}]}},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Advance": 600},
                {"Release": 9}
            ],
            "after": []
        }"#,
    ),
    (
        "a key is given to no more tasks than it has room for",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"room": 1}}],
            "tasks": [0, 0, 0],
            "operations": [
                {"Create": [[0, []], [1, []]]},
                "Grant",
                {"Claim": {"node": 0, "slots": [3], "from": null}},
                {"Create": [[2, []]]},
                "Grant",
                {"Claim": {"node": 0, "slots": [3], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a key goes to the oldest that waits",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"room": 2}}],
            "tasks": [0, 0, 0],
            "operations": [
                {"Create": [[0, []]]},
                "Grant",
                {"Create": [[2, []], [1, []]]},
                "Grant",
                {"Claim": {"node": 0, "slots": [3], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that is cancelled gives its key to the next",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"room": 1}}],
            "tasks": [0, 0],
            "operations": [
                {"Create": [[0, []], [1, []]]},
                "Grant",
                {"Claim": {"node": 0, "slots": [2], "from": null}},
                {"Cancel": {"tasks": [0], "overriding": false}},
                "Grant",
                {"Claim": {"node": 0, "slots": [2], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that ended while it waited holds up none behind it",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"room": 1}}],
            "tasks": [0, 0, 0],
            "operations": [
                {"Create": [[0, []], [1, []], [2, []]]},
                "Grant",
                {"Claim": {"node": 0, "slots": [3], "from": null}},
                {"Cancel": {"tasks": [1, 0], "overriding": false}},
                "Grant",
                "Grant",
                {"Claim": {"node": 0, "slots": [3], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that is open again waits for its key again",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false, "rules": {"room": 1}}],
            "tasks": [0, 0],
            "operations": [
                {"Create": [[0, []], [1, []]]},
                "Grant",
                {"Claim": {"node": 0, "slots": [2], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                "Grant",
                {"Retry": {"tasks": [0], "more": null}},
                "Grant",
                {"Claim": {"node": 0, "slots": [2], "from": null}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}]}},
                "Grant",
                {"Claim": {"node": 0, "slots": [2], "from": null}}
            ],
            "after": []
        }"#,
    ),
    (
        "whatever is not done changes over to the queues of another priority, and what is done stays",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [3], "queue": 0, "max_attempts": 3}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [4], "from": null, "first": 0}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}, {"held": {"pick": 1, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}, {"held": {"pick": 2, "late": false, "foreign": false}, "ending": {"Fail": 1000}, "slots": 0, "again": null}]}},
                {"Priority": {"task": 0, "priority": 1}},
                {"Priority": {"task": 0, "priority": 1}},
                {"Priority": {"task": 0, "priority": null}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                "AdvanceToTimer",
                {"Release": 9},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 2}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}]}},
                {"Create": [[0, [], 5]]},
                {"Priority": {"task": 0, "priority": 5}},
                {"Priority": {"task": 0, "priority": 1}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                {"Retry": {"tasks": [0], "more": null}},
                {"Claim": {"node": 0, "slots": [9, 0, 9, 0, 9], "from": null, "first": 0}}
            ],
            "after": []
        }"#,
    ),
    (
        "the same, of a task that is ruled",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [3], "queue": 0, "max_attempts": 3}], "backwards": false, "rules": {"deadline": 60000}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Claim": {"node": 0, "slots": [4], "from": null, "first": 0}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}, {"held": {"pick": 1, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}, {"held": {"pick": 2, "late": false, "foreign": false}, "ending": {"Fail": 1000}, "slots": 0, "again": null}]}},
                {"Priority": {"task": 0, "priority": 1}},
                {"Priority": {"task": 0, "priority": 1}},
                {"Priority": {"task": 0, "priority": null}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                "AdvanceToTimer",
                {"Release": 9},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 2}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}]}},
                {"Create": [[0, [], 5]]},
                {"Priority": {"task": 0, "priority": 5}},
                {"Priority": {"task": 0, "priority": 1}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                {"Retry": {"tasks": [0], "more": null}},
                {"Claim": {"node": 0, "slots": [9, 0, 9, 0, 9], "from": null, "first": 0}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task waits in the queues of its own priority, else of its plan's, and they are made once",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [0], "queue": 1, "max_attempts": 3}], "backwards": false, "priority": 5},
                {"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 1, "max_attempts": 3}], "backwards": false}],
            "tasks": [0, 0, 1, 1],
            "operations": [
                {"Create": [[0, []], [1, [], 1], [2, [], 1]]},
                {"Create": [[0, [], 1], [3, [1], 1], [1, [], 3]]},
                {"Claim": {"node": 0, "slots": [9, 9, 9, 9], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [9, 9, 9, 9], "from": null, "first": 4}}
            ],
            "after": []
        }"#,
    ),
    (
        "what a limited task has parked changes over unoffered, and its offers of before let out others",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 0, "max_attempts": 3}], "backwards": false, "rules": {"max_parallel": 1}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Priority": {"task": 0, "priority": 1}},
                {"Claim": {"node": 0, "slots": [0, 0, 1], "from": null, "first": 0}},
                {"Priority": {"task": 0, "priority": 3}},
                {"Claim": {"node": 0, "slots": [0, 0, 9], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}]}},
                {"Claim": {"node": 0, "slots": [9], "from": null, "first": 0}}
            ],
            "after": []
        }"#,
    ),
    (
        "a step is offered by a new priority though an attempt of it before is parked",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [], "queue": 1, "max_attempts": 3}], "backwards": false, "rules": {"max_parallel": 1}}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Priority": {"task": 0, "priority": 1}},
                {"Priority": {"task": 0, "priority": 3}},
                {"Priority": {"task": 0, "priority": 1}},
                {"Priority": {"task": 0, "priority": 3}},
                {"Claim": {"node": 0, "slots": [1], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [0, 1], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [0, 1], "from": null, "first": 0}},
                {"Claim": {"node": 0, "slots": [0, 1], "from": null, "first": 0}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 0, "again": null}]}},
                {"Claim": {"node": 0, "slots": [0, 1], "from": null, "first": 0}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": 10}, "slots": 0, "again": null}]}},
                {"Advance": 10},
                {"Priority": {"task": 0, "priority": 1}}
            ],
            "after": []
        }"#,
    ),
    (
        "a pause of a definition, or of its namespace, covers that alone, and each is taken back for itself",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [0], "queue": 0, "max_attempts": 3}], "backwards": false},
                {"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [0], "queue": 0, "max_attempts": 3}], "backwards": false, "name": [0, 1]},
                {"steps": [{"parents": [], "queue": 0, "max_attempts": 3}, {"parents": [0], "queue": 0, "max_attempts": 3}], "backwards": false, "name": [1, 0]}],
            "tasks": [0, 1, 2],
            "operations": [
                {"Create": [[0, []], [1, []], [2, []]]},
                {"Claim": {"node": 0, "slots": [1, 0, 1, 0, 1], "from": null, "first": 0}},
                {"PausePlan": {"plan": 0, "all": false, "paused": true}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": "Complete", "slots": 255, "again": null}, {"held": {"pick": 1, "late": false, "foreign": false}, "ending": "Complete", "slots": 255, "again": null}, {"held": {"pick": 2, "late": false, "foreign": false}, "ending": "Complete", "slots": 255, "again": null}]}},
                {"Claim": {"node": 0, "slots": [9, 9], "from": null, "first": 0}},
                {"PausePlan": {"plan": 0, "all": true, "paused": true}},
                {"PausePlan": {"plan": 1, "all": false, "paused": true}},
                {"PausePlan": {"plan": 0, "all": false, "paused": false}},
                {"Claim": {"node": 0, "slots": [9, 9, 9, 9], "from": null, "first": 0}},
                {"PausePlan": {"plan": 0, "all": true, "paused": false}},
                {"Claim": {"node": 0, "slots": [9, 9, 9, 9], "from": null, "first": 0}},
                {"PausePlan": {"plan": 1, "all": false, "paused": false}},
                {"PausePlan": {"plan": 1, "all": false, "paused": false}},
                {"PausePlan": {"plan": 3, "all": false, "paused": true}},
                {"PausePlan": {"plan": 3, "all": true, "paused": true}}
            ],
            "after": []
        }"#,
    ),
    (
        "how many attempts a step may make changes only while it waits or is in error, and never below those it made",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Attempts": {"step": {"pick": 0, "blind": true}, "most": 2}},
                {"Claim": {"node": 0, "slots": [1], "from": null, "first": 0}},
                {"Attempts": {"step": {"pick": 0, "blind": true}, "most": 9}},
                {"Report": {"node": 0, "reports": [{"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}]}},
                {"Attempts": {"step": {"pick": 0, "blind": true}, "most": 0}},
                {"Attempts": {"step": {"pick": 0, "blind": true}, "most": 5}},
                {"Resolve": {"tasks": [0]}},
                {"Attempts": {"step": {"pick": 0, "blind": true}, "most": 9}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task keeps as many facts as it may, and another one only once one of them is forgotten",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 3}], "backwards": false}],
            "tasks": [0],
            "operations": [
                {"Create": [[0, []]]},
                {"Annotate": {"task": 0, "fact": 0, "kept": true}},
                {"Annotate": {"task": 0, "fact": 1, "kept": true}},
                {"Annotate": {"task": 0, "fact": 2, "kept": true}},
                {"Annotate": {"task": 0, "fact": 1, "kept": true}},
                {"Annotate": {"task": 0, "fact": 0, "kept": false}},
                {"Annotate": {"task": 0, "fact": 2, "kept": true}}
            ],
            "after": []
        }"#,
    ),
    (
        "a key is of the last task that was made for it, until its window is over, and who repeats a request has none",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0, 0, 0, 0, 0],
            "operations": [
                {"Create": [[0, [], null, {"key": 0, "window": 500}], [1, []]]},
                {"Create": [[1, [], null, {"key": 0, "window": null}]]},
                {"Create": [[1, [], 5, {"key": 1, "window": null}], [2, [], null, {"key": 1, "window": null}]]},
                {"Advance": 500},
                {"Create": [[3, [], null, {"key": 0, "window": 500}]]},
                {"Create": [[4, [], null, {"key": 0, "window": 500}]]}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that was removed leaves its key to another, and its row to nobody",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0, 0],
            "operations": [
                {"Create": [[0, [], null, {"key": 0, "window": null}, [0, 0]]]},
                {"Cancel": {"tasks": [0], "overriding": false}},
                {"Advance": 999},
                {"Remove": {"after": null, "age": 1, "error": 1, "scan": 1, "most": 2}},
                {"Advance": 1},
                {"Remove": {"after": null, "age": 1, "error": 1, "scan": 1, "most": 2}},
                {"Claim": {"node": 0, "slots": [1], "from": null}},
                {"Create": [[1, [], null, {"key": 0, "window": null}]]}
            ],
            "after": []
        }"#,
    ),
    (
        "a task in error is removed only where that is asked for, and as it was seen",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false}],
            "tasks": [0, 0],
            "operations": [
                {"Create": [[0, []], [1, []]]},
                {"Annotate": {"task": 0, "fact": 0, "kept": true, "text": 0}},
                {"Annotate": {"task": 0, "fact": 0, "kept": true, "text": 1}},
                {"Claim": {"node": 0, "slots": [2], "from": null}},
                {"Report": {"node": 0, "reports": [
                    {"held": {"pick": 0, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null},
                    {"held": {"pick": 1, "late": false, "foreign": false}, "ending": {"Fail": null}, "slots": 0, "again": null}
                ]}},
                {"Resolve": {"tasks": [1]}},
                {"Annotate": {"task": 1, "fact": 0, "kept": true, "text": 0}},
                {"RemoveNamed": {"tasks": [[0, "Now"]], "in_error": false}},
                {"Advance": 1000},
                {"Remove": {"after": null, "age": 1, "error": 0, "scan": 1, "most": 2}},
                {"RemoveNamed": {"tasks": [[0, "InAnotherState"]], "in_error": true}},
                {"RemoveNamed": {"tasks": [[0, "WithAnotherEnd"]], "in_error": true}},
                {"RemoveNamed": {"tasks": [[0, "Now"]], "in_error": true}}
            ],
            "after": []
        }"#,
    ),
    (
        "a task that is removed while it stands in line for a key stands there no longer",
        r#"{
            "dags": [{"steps": [{"parents": [], "queue": 0, "max_attempts": 1}], "backwards": false,
                      "rules": {"max_parallel": 0, "queue_timeout": null, "total_timeout": null, "deadline": null, "room": 1}}],
            "tasks": [0, 0, 0],
            "operations": [
                {"Create": [[0, []], [1, []], [2, []]]},
                "Grant",
                {"Cancel": {"tasks": [2], "overriding": false}},
                "Grant",
                {"Advance": 1000},
                {"Remove": {"after": null, "age": 1, "error": 0, "scan": 4, "most": 1}}
            ],
            "after": []
        }"#,
    ),
];

/// The cases, read.
pub fn regressions() -> impl Iterator<Item = (&'static str, Case)> {
    REGRESSIONS.iter().map(|(name, case)| (*name, serde_json::from_str(case).unwrap()))
}

#[test]
fn what_is_kept_holds() {
    let mut worker = Worker::new("");
    for (name, case) in regressions() {
        if let Err(found) = worker.run(&case) {
            panic!("{name}: {found}");
        }
    }
}
