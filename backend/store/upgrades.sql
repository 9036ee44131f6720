-- from_1: Pauses and warnings came with schema 2.
ALTER TABLE projects ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
CREATE TABLE notices (
    project INTEGER NOT NULL,
    topic TEXT NOT NULL,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (project, topic, number)
);
CREATE INDEX jobs_overview ON jobs (project, version, task, state, delivery, score, seconds, updated_at);

-- from_2: References of several annotations and settings of single projects came with schema 3.
CREATE TABLE learned_from (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    annotation INTEGER NOT NULL,
    position INTEGER NOT NULL,
    task INTEGER NOT NULL,
    key TEXT NOT NULL,
    regions BLOB NOT NULL,
    PRIMARY KEY (project, annotation)
);
ALTER TABLE projects ADD COLUMN reference_shots INTEGER NOT NULL DEFAULT 0;
ALTER TABLE projects ADD COLUMN extra_params TEXT NOT NULL DEFAULT '';
ALTER TABLE projects ADD COLUMN shown_version TEXT NOT NULL DEFAULT '';
ALTER TABLE annotations ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';
ALTER TABLE annotations ADD COLUMN ground_truth INTEGER NOT NULL DEFAULT 0;
INSERT INTO learned_from SELECT r.project, r.annotation, 0, r.task, r.key, r.regions
    FROM reference_annotations r JOIN projects p ON p.id = r.project AND p.reference_key = r.key;
DROP TABLE reference_annotations;
UPDATE tasks SET annotations_read = '';

-- from_3: Remarks on a result came with schema 4.
ALTER TABLE jobs ADD COLUMN remarks TEXT NOT NULL DEFAULT '[]';
DROP INDEX jobs_overview;
CREATE INDEX jobs_overview ON jobs (project, version, task, state, delivery, score, seconds, updated_at, remarks);

-- from_4: With schema 5 a job knows whether its score estimates an IoU; of earlier ones nobody does.
ALTER TABLE jobs ADD COLUMN calibrated INTEGER NOT NULL DEFAULT 0;
DROP INDEX jobs_overview;
CREATE INDEX jobs_overview
    ON jobs (project, version, task, state, delivery, score, seconds, updated_at, remarks, calibrated);

-- from_5: Kept candidates, measured reviews and what they taught came with schema 6.
ALTER TABLE jobs ADD COLUMN lesson TEXT NOT NULL DEFAULT '';
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
CREATE TABLE lessons (
    project INTEGER PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
    name TEXT NOT NULL,
    base TEXT NOT NULL,
    reviews INTEGER NOT NULL,
    experience TEXT NOT NULL,
    told TEXT NOT NULL
);
CREATE TABLE evaluations (
    project INTEGER PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
    evaluation TEXT NOT NULL
);

-- from_6: Annotations of several Label Studios, which may have the same number, came with schema 7.
ALTER TABLE annotations RENAME TO former_annotations;
DROP INDEX annotations_of_task;
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
INSERT INTO annotations SELECT id, project, task, created_at, key, reason, labels, ground_truth FROM former_annotations;
DROP TABLE former_annotations;
ALTER TABLE refusals RENAME TO former_refusals;
CREATE TABLE refusals (
    annotation INTEGER NOT NULL,
    key TEXT NOT NULL,
    reason TEXT NOT NULL,
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    PRIMARY KEY (project, annotation, key)
);
INSERT INTO refusals SELECT annotation, key, reason, project FROM former_refusals;
DROP TABLE former_refusals;
