-- The ledger's schema, number 7. `upgrades.sql` turns a file of an earlier one into this.

-- Values by name: the schema's number; `paused`; `grant:<project>`, the address and key that Label Studio handed over;
-- `again:<project>`, whose predictions are to be replaced; `rebuild`, the name under which a damaged file is kept
-- whose projects were not looked for yet.
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);

-- `id` is the key of `project_keys.py`. `uid` is the moment of creation as Label Studio writes it. `version` and `reference_key` are what is predicted under
-- now; a project without a reference has no key.
CREATE TABLE projects (
    id INTEGER PRIMARY KEY,
    uid TEXT NOT NULL,
    title TEXT NOT NULL DEFAULT '',
    label_config TEXT NOT NULL DEFAULT '',
    version TEXT NOT NULL DEFAULT '',
    reference_key TEXT,
    error TEXT,
    reconciled_at REAL,
    paused INTEGER NOT NULL DEFAULT 0,
    reference_shots INTEGER NOT NULL DEFAULT 0,
    extra_params TEXT NOT NULL DEFAULT '',
    shown_version TEXT NOT NULL DEFAULT ''
);

-- Tasks as they were last listed. `annotations_read` is the state under which a task's annotations were read,
-- `predictions_read` the number of predictions under which it was searched for duplicates.
CREATE TABLE tasks (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    id INTEGER NOT NULL,
    data TEXT NOT NULL,
    annotated INTEGER NOT NULL DEFAULT 0,
    annotations_read TEXT NOT NULL DEFAULT '',
    predictions_read INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (project, id)
);

-- Annotations as they were judged; those with a `reason` cannot be learned from.
CREATE TABLE annotations (
    id INTEGER NOT NULL,
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    task INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    key TEXT NOT NULL,
    reason TEXT NOT NULL,
    labels TEXT NOT NULL DEFAULT '[]',
    ground_truth INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (project, id)
);
CREATE INDEX annotations_of_task ON annotations (project, task);

-- Annotations that taught nothing when they were learned from, as they are under `key`.
CREATE TABLE refusals (
    annotation INTEGER NOT NULL,
    key TEXT NOT NULL,
    reason TEXT NOT NULL,
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    PRIMARY KEY (project, annotation, key)
);

-- A job is one task under one version; `store/deliveries.py` explains the states of its delivery. `result` is the
-- compressed JSON text of the regions, `remarks` a JSON list of what a person should look at in it, `lesson` the name of
-- what it was made with, see `lessons`, `calibrated` whether the score estimates an IoU, rather than give an order only.
CREATE TABLE jobs (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    task INTEGER NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed')),
    priority INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    score REAL,
    seconds REAL,
    error TEXT,
    result BLOB,
    delivery TEXT NOT NULL DEFAULT 'open'
        CHECK (delivery IN ('open', 'reserved', 'answered', 'pushing', 'delivered')),
    delivery_owner TEXT,
    delivery_until REAL,
    updated_at REAL NOT NULL,
    remarks TEXT NOT NULL DEFAULT '[]',
    calibrated INTEGER NOT NULL DEFAULT 0,
    lesson TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (project, task, version)
);
CREATE INDEX jobs_by_state ON jobs (state, delivery);

-- What there is to tell people of a project; the project need not be known yet, so nothing refers to it.
CREATE TABLE notices (
    project INTEGER NOT NULL,
    topic TEXT NOT NULL,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (project, topic, number)
);

-- This index spares an overview of 50,000 tasks reading past their results.
CREATE INDEX jobs_overview
    ON jobs (project, version, task, state, delivery, score, seconds, updated_at, remarks, calibrated);

-- The annotations of the present reference only, by age.
CREATE TABLE learned_from (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    annotation INTEGER NOT NULL,
    position INTEGER NOT NULL,
    task INTEGER NOT NULL,
    key TEXT NOT NULL,
    regions BLOB NOT NULL,
    PRIMARY KEY (project, annotation)
);

-- The ways to the latest predicted masks of a task that were tried, compressed; see `learning/candidates.py`. The
-- oldest beyond `candidates.KEPT` of a project go.
CREATE TABLE candidates (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    task INTEGER NOT NULL,
    version TEXT NOT NULL,
    last TEXT NOT NULL,
    seconds REAL NOT NULL,
    tried BLOB NOT NULL,
    kept_at REAL NOT NULL,
    PRIMARY KEY (project, task)
);
CREATE INDEX candidates_by_age ON candidates (project, kept_at);

-- Annotations held against the prediction that was there before them. `digest` changes with the annotation; `measured`
-- is the JSON text of its labels, see `learning/measure.py`.
CREATE TABLE reviews (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    task INTEGER NOT NULL,
    base TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL,
    verdict TEXT NOT NULL,
    iou REAL,
    score REAL,
    last TEXT NOT NULL,
    seconds REAL NOT NULL,
    measured TEXT NOT NULL,
    PRIMARY KEY (project, task)
);

-- What a project's reviews taught, under the name that is part of the versions of predictions made with it.
CREATE TABLE lessons (
    project INTEGER PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
    name TEXT NOT NULL,
    base TEXT NOT NULL,
    reviews INTEGER NOT NULL,
    experience TEXT NOT NULL,
    told TEXT NOT NULL
);

-- What a project's reviews say, as JSON text for the status page; see `learning/evaluation.py`.
CREATE TABLE evaluations (
    project INTEGER PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
    evaluation TEXT NOT NULL
);
