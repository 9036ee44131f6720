-- Every query of the ledger, by name: `-- name: what it is for`, more lines of comment if it needs them, then the
-- statement. `queries.py` reads the file; `?` are values in the order in which the caller gives them. A job counts as
-- present if its version is the one that its project has now.


-- Projects

-- project: One project.
SELECT * FROM projects WHERE id = ?;

-- projects: All projects.
SELECT * FROM projects ORDER BY id;

-- project_numbers: The numbers of all projects.
SELECT id FROM projects ORDER BY id;

-- projects_of_number: Those of one number, whichever their Label Studio; the first value is `project_keys.SPAN`.
SELECT id, uid FROM projects WHERE id % ? = ? ORDER BY id;

-- project_uid: The moment of creation, as Label Studio writes it, tells two projects of one number apart.
SELECT uid FROM projects WHERE id = ?;

-- add_project: A project that is new to the ledger.
INSERT INTO projects (id, uid) VALUES (?, ?);

-- forget_project: Its tasks, annotations, references, refusals and jobs go with it.
DELETE FROM projects WHERE id = ?;

-- describe_project: What the API says of it.
UPDATE projects SET title = ?, label_config = ? WHERE id = ?;

-- set_extra_params: The JSON text of what its connection was given.
UPDATE projects SET extra_params = ? WHERE id = ?;

-- set_shown_version: The version that Label Studio was told to show.
UPDATE projects SET shown_version = ? WHERE id = ?;

-- set_error: Why it cannot be worked on, or NULL.
UPDATE projects SET error = ? WHERE id = ?;

-- mark_synced: The ledger agreed with Label Studio at this moment.
UPDATE projects SET error = NULL, reconciled_at = ? WHERE id = ?;

-- warnings: What there is to tell people of a project.
SELECT topic, text FROM notices WHERE project = ? ORDER BY topic, number;

-- forget_topic: The warnings on one topic.
DELETE FROM notices WHERE project = ? AND topic = ?;

-- forget_warnings: All warnings of a project.
DELETE FROM notices WHERE project = ?;

-- add_warning: One warning on a topic.
INSERT INTO notices VALUES (?, ?, ?, ?);

-- set_project_paused: Whether jobs of one project are taken.
UPDATE projects SET paused = ? WHERE id = ?;

-- pause_all: No job of any project is taken.
INSERT OR REPLACE INTO meta VALUES ('paused', '1');

-- resume_all: Jobs are taken again, but those of projects that are paused themselves.
DELETE FROM meta WHERE name = 'paused';

-- is_paused: A row if a project or the whole backend is paused.
SELECT 1 FROM meta WHERE name = 'paused' UNION ALL SELECT 1 FROM projects WHERE id = ? AND paused;


-- Values by name

-- grants: The address and the token that Label Studio handed over, of each project.
SELECT name, value FROM meta WHERE name LIKE 'grant:%';

-- wanted_again: The projects whose predictions are to be replaced.
SELECT name FROM meta WHERE name LIKE 'again:%';

-- value: One value.
SELECT value FROM meta WHERE name = ?;

-- set_value: One value.
INSERT OR REPLACE INTO meta VALUES (?, ?);

-- forget_value: One value.
DELETE FROM meta WHERE name = ?;


-- Tasks

-- tasks: All tasks of a project.
SELECT * FROM tasks WHERE project = ? ORDER BY id;

-- task: One task.
SELECT * FROM tasks WHERE project = ? AND id = ?;

-- tasks_without_job: Under one version.
SELECT id, annotated FROM tasks WHERE project = ?
AND id NOT IN (SELECT task FROM jobs WHERE project = ? AND version = ?) ORDER BY id;

-- task_numbers: The tasks that the ledger has.
SELECT id FROM tasks WHERE project = ?;

-- store_task: A task as listed; what was read of its annotations stays.
INSERT INTO tasks (project, id, data, annotated) VALUES (?, ?, ?, ?)
ON CONFLICT (project, id) DO UPDATE SET data = excluded.data, annotated = excluded.annotated;

-- forget_task: A task that was deleted in Label Studio.
DELETE FROM tasks WHERE project = ? AND id = ?;

-- forget_jobs_of_task: Of all versions.
DELETE FROM jobs WHERE project = ? AND task = ?;

-- annotations_read: The state under which each task's annotations were read last.
SELECT id, annotations_read FROM tasks WHERE project = ?;

-- predictions_read: Under how many predictions each task was last searched for duplicates.
SELECT id, predictions_read FROM tasks WHERE project = ?;

-- set_predictions_read: A task was searched for duplicates.
UPDATE tasks SET predictions_read = ? WHERE project = ? AND id = ?;


-- Annotations and references

-- forget_annotations: Of one task.
DELETE FROM annotations WHERE project = ? AND task = ?;

-- add_annotation: An annotation as it was judged.
INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- set_annotations_read: The task's `updated_at` (and counts) that its annotations were read under.
UPDATE tasks SET annotations_read = ? WHERE project = ? AND id = ?;

-- forget_annotations_read: All annotations are read anew with the next sync.
UPDATE tasks SET annotations_read = '' WHERE project = ?;

-- annotations: As they were judged, and with the reason for which the model refused one as it is now.
SELECT a.*, r.reason AS refused FROM annotations a
LEFT JOIN refusals r ON r.project = a.project AND r.annotation = a.id AND r.key = a.key
WHERE a.project = ?;

-- annotations_of_task: The same of one task.
SELECT a.*, r.reason AS refused FROM annotations a
LEFT JOIN refusals r ON r.project = a.project AND r.annotation = a.id AND r.key = a.key
WHERE a.project = ? AND a.task = ?;

-- refuse_annotation: It taught nothing as it is now; an edit changes its key and gives it another try.
INSERT OR REPLACE INTO refusals SELECT ?, ?, ?, id FROM projects WHERE id = ?;

-- forget_references: What a project learned from.
DELETE FROM learned_from WHERE project = ?;

-- add_reference: One of the annotations that a project learns from.
INSERT INTO learned_from VALUES (?, ?, ?, ?, ?, ?);

-- set_version: The version that the references lead to.
UPDATE projects SET reference_key = ?, reference_shots = ?, version = ? WHERE id = ?;

-- forget_unfinished: What is done under another version stays: the reference may come back.
DELETE FROM jobs WHERE project = ? AND version != ? AND state IN ('queued', 'failed');

-- references: What a project learns from now, by age.
SELECT l.*, p.reference_key, p.reference_shots FROM learned_from l JOIN projects p ON p.id = l.project
WHERE p.id = ? AND p.reference_key IS NOT NULL ORDER BY l.position;


-- The queue of the worker

-- next_jobs: The most urgent present job that may be tried now of each project that is not paused.
SELECT j.* FROM projects p
JOIN jobs j ON j.project = p.id AND j.version = p.version AND j.task = (
SELECT q.task FROM jobs q WHERE q.project = p.id AND q.version = p.version AND q.state = 'queued'
AND q.not_before <= ? ORDER BY q.priority DESC, q.task LIMIT 1)
WHERE NOT p.paused AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'paused') ORDER BY p.id;

-- begin_job: Each beginning counts as an attempt.
UPDATE jobs SET state = 'running', attempts = attempts + 1, updated_at = ?
WHERE project = ? AND task = ? AND version = ?;

-- first_moment: When the first of the queued jobs may be tried.
SELECT min(j.not_before) AS first FROM jobs j
JOIN projects p ON p.id = j.project AND p.version = j.version AND NOT p.paused
AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'paused')
WHERE j.state = 'queued';

-- queue_length: How many jobs wait for the model process.
SELECT count(*) AS n FROM jobs j
JOIN projects p ON p.id = j.project AND p.version = j.version AND NOT p.paused
AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'paused')
WHERE j.state = 'queued';

-- finish_job: Its result, compressed, and the remarks on it.
UPDATE jobs SET state = 'done', result = ?, score = ?, seconds = ?, remarks = ?, calibrated = ?, lesson = ?,
error = NULL, updated_at = ?
WHERE project = ? AND task = ? AND version = ?;

-- fail_job: Why it gave no result.
UPDATE jobs SET state = 'failed', error = ?, seconds = ?, updated_at = ?
WHERE project = ? AND task = ? AND version = ?;

-- put_back: A running job, with the number of attempts to take back.
UPDATE jobs SET state = 'queued', error = ?, not_before = ?, attempts = attempts - ?, updated_at = ?
WHERE project = ? AND task = ? AND version = ? AND state = 'running';

-- hold_version: Its queued jobs are not tried before a moment.
UPDATE jobs SET not_before = max(not_before, ?) WHERE project = ? AND version = ? AND state = 'queued';

-- give_up_running: A job that was begun so often, and never ended in order, may be what ends the process.
UPDATE jobs SET state = 'failed', error = ?, updated_at = ? WHERE state = 'running' AND attempts >= ?;

-- requeue_running: Nobody runs them any more.
UPDATE jobs SET state = 'queued', not_before = 0 WHERE state = 'running';

-- job_groups: A score on the bound of two tenths belongs to the lower one.
SELECT j.state, j.delivery = 'delivered' AS delivered,
coalesce(CAST(j.score * 10 AS INTEGER) - (j.score * 10 = CAST(j.score * 10 AS INTEGER)), 0) AS tenth,
count(*) AS count, coalesce(sum(j.seconds), 0) AS seconds, coalesce(sum(j.score), 0) AS score,
min(j.updated_at) AS oldest
FROM jobs j JOIN projects p ON p.id = j.project AND p.version = j.version GROUP BY 1, 2, 3;

-- carried_versions: The same with the lessons that predictions were made with.
SELECT DISTINCT version, lesson FROM jobs WHERE state = 'done' UNION
SELECT version, '' FROM projects WHERE version != '' ORDER BY version, lesson;

-- versions: All versions that have finished jobs, and the present ones.
SELECT DISTINCT version FROM jobs WHERE state = 'done' UNION
SELECT version FROM projects WHERE version != '' ORDER BY version;


-- The jobs of one version

-- queue_job: Nothing changes if the task has a job already.
INSERT OR IGNORE INTO jobs (project, task, version, priority, updated_at) VALUES (?, ?, ?, ?, ?);

-- raise_priority: Never lowers it.
UPDATE jobs SET priority = max(priority, ?) WHERE project = ? AND version = ? AND task = ?;

-- retry_failed: Those that failed at a moment or before.
UPDATE jobs SET state = 'queued', attempts = 0, not_before = 0 WHERE project = ? AND version = ?
AND state = 'failed' AND updated_at <= ?;

-- retry_failed_task: The same for one task.
UPDATE jobs SET state = 'queued', attempts = 0, not_before = 0 WHERE project = ? AND version = ?
AND state = 'failed' AND updated_at <= ? AND task = ?;

-- jobs: Without their results, which may be large.
SELECT project, task, version, state, attempts, score, seconds, error, NULL AS result, delivery, updated_at, remarks,
calibrated, lesson
FROM jobs WHERE project = ? AND version = ?;

-- jobs_of_tasks: The same of some tasks, given as a JSON list.
SELECT project, task, version, state, attempts, score, seconds, error, NULL AS result, delivery, updated_at, remarks,
calibrated, lesson
FROM jobs WHERE project = ? AND version = ? AND task IN (SELECT value FROM json_each(?));

-- job: One job with its result.
SELECT * FROM jobs WHERE project = ? AND task = ? AND version = ?;

-- forget_jobs: All that was computed under a version.
DELETE FROM jobs WHERE project = ? AND version = ?;

-- counts: How many jobs are in each state.
SELECT sum(state = 'queued') AS queued, sum(state = 'running') AS running, sum(state = 'done') AS done,
sum(state = 'failed') AS failed, sum(delivery = 'delivered') AS delivered
FROM jobs WHERE project = ? AND version = ?;

-- lowest_tenth: The score below which lies a tenth of the bare orders, or less.
SELECT score FROM jobs WHERE project = :project AND version = :version AND state = 'done' AND NOT calibrated
AND score IS NOT NULL ORDER BY score LIMIT 1 OFFSET (SELECT count(*) / 10 FROM jobs WHERE project = :project
AND version = :version AND state = 'done' AND NOT calibrated AND score IS NOT NULL);

-- order_rank: How many bare orders there are, and how many of them are no higher than a score.
SELECT count(*) AS count, coalesce(sum(score <= ?), 0) AS lower FROM jobs
WHERE project = ? AND version = ? AND state = 'done' AND NOT calibrated AND score IS NOT NULL;

-- to_check: How many predictions that nobody has reviewed have a score below the bound of its kind, or a remark.
SELECT count(*) AS n FROM jobs j WHERE j.project = ? AND j.version = ? AND j.state = 'done'
AND (j.score < iif(j.calibrated, ?, ?) OR j.remarks != '[]')
AND NOT EXISTS (SELECT 1 FROM reviews r WHERE r.project = j.project AND r.task = j.task);

-- job_times: Of the last finished jobs: how many, the mean of their seconds and of the squares of these.
SELECT count(*) AS count, avg(seconds) AS mean, avg(seconds * seconds) AS square FROM (
SELECT seconds FROM jobs WHERE project = ? AND version = ?
AND state = 'done' AND seconds IS NOT NULL ORDER BY updated_at DESC LIMIT 200);

-- count_tasks: Of a project.
SELECT count(*) AS n FROM tasks t WHERE t.project = :project;

-- count_task_states: How many tasks a page's filter lets through; `{filter}` is one of `jobs.FILTERS`.
SELECT count(*) AS n FROM tasks t
LEFT JOIN jobs j ON j.project = t.project AND j.task = t.id AND j.version = :version
LEFT JOIN reviews r ON r.project = t.project AND r.task = t.id
WHERE t.project = :project AND {filter};

-- task_state_page: The tasks of one page; `{filter}` and `{order}` are one of `jobs.FILTERS` and `jobs.ORDERS`.
SELECT t.id AS id FROM tasks t
LEFT JOIN jobs j ON j.project = t.project AND j.task = t.id AND j.version = :version
LEFT JOIN reviews r ON r.project = t.project AND r.task = t.id
WHERE t.project = :project AND {filter} ORDER BY {order} LIMIT :limit OFFSET :offset;

-- task_state: What became of one task.
SELECT state, delivery, score, seconds, error, attempts, result IS NOT NULL AS has_result, updated_at, remarks, calibrated
FROM jobs WHERE project = ? AND task = ? AND version = ?;


-- Deliveries: who may give a result to Label Studio

-- reserve: Only an open result may be promised.
UPDATE jobs SET delivery = 'reserved', delivery_owner = ? WHERE project = ? AND version = ?
AND task = ? AND delivery = 'open';

-- answer: A finished result goes to the request that reserved it.
UPDATE jobs SET delivery = 'answered', delivery_until = ?, delivery_owner = NULL
WHERE project = ? AND version = ? AND task = ? AND delivery = 'reserved'
AND delivery_owner = ? AND state = 'done' RETURNING *;

-- release: What a request reserved and did not answer.
UPDATE jobs SET delivery = 'open', delivery_owner = NULL
WHERE delivery = 'reserved' AND delivery_owner = ?;

-- release_all: After a restart the requests that reserved are gone.
UPDATE jobs SET delivery = 'open', delivery_owner = NULL WHERE delivery = 'reserved';

-- waiting_to_push: Finished results that nobody has, in the order in which they were finished.
SELECT task, length(result) AS size FROM jobs WHERE project = ? AND version = ? AND state = 'done'
AND delivery = 'open' AND not_before <= ? ORDER BY updated_at, task LIMIT ?;

-- claim_push: Taken for an import.
UPDATE jobs SET delivery = 'pushing' WHERE project = ? AND version = ? AND task = ?
RETURNING *;

-- mark_delivered: Label Studio has it; a job is made for a task that we never computed.
INSERT INTO jobs (project, task, version, state, delivery, updated_at)
VALUES (?, ?, ?, 'done', 'delivered', ?) ON CONFLICT DO UPDATE SET delivery = 'delivered',
state = iif(state = 'running', 'running', 'done'), delivery_owner = NULL, delivery_until = NULL;

-- mark_open: Label Studio will not get it from what is under way; without a stored result it is computed again.
UPDATE jobs SET delivery = 'open', delivery_owner = NULL, delivery_until = NULL, not_before = ?,
state = iif(state = 'done' AND result IS NULL, 'queued', state)
WHERE project = ? AND version = ? AND task = ?;

-- reopen: It was deleted in Label Studio.
UPDATE jobs SET delivery = 'open', state = iif(result IS NULL, 'queued', state)
WHERE project = ? AND version = ? AND task = ? AND delivery = 'delivered';

-- mark_in_doubt: Label Studio may be storing it.
UPDATE jobs SET delivery = 'answered', delivery_owner = NULL, delivery_until = ?
WHERE project = ? AND version = ? AND task = ?;

-- mark_rejected: Label Studio will not take it.
UPDATE jobs SET state = 'failed', delivery = 'open', delivery_until = NULL, error = ?, updated_at = ?
WHERE project = ? AND version = ? AND task = ?;

-- doubt_pushing: Imports whose outcome could not be written down count as answered.
UPDATE jobs SET delivery = 'answered', delivery_owner = NULL, delivery_until = ?
WHERE delivery = 'pushing';

-- delivered: What Label Studio has.
SELECT task FROM jobs WHERE project = ? AND version = ? AND delivery = 'delivered' ORDER BY task;

-- answered: Results whose storing is not confirmed.
SELECT task, delivery_until FROM jobs WHERE project = ? AND version = ? AND delivery = 'answered';

-- has_deliveries: A row if a present result waits to be pushed or confirmed.
SELECT 1 FROM jobs j JOIN projects p ON p.id = j.project AND p.version = j.version WHERE p.id = ?
AND (j.delivery = 'answered' OR (j.state = 'done' AND j.delivery = 'open')) LIMIT 1;

-- is_complete: A row if every task but the references' own has failed or is delivered under the present version.
SELECT 1 FROM projects p WHERE p.id = ? AND p.reference_key IS NOT NULL AND NOT EXISTS (
SELECT 1 FROM tasks t LEFT JOIN jobs j ON j.project = p.id AND j.task = t.id
AND j.version = p.version WHERE t.project = p.id AND (j.state IS NULL OR (j.state != 'failed'
AND j.delivery != 'delivered'))
AND NOT EXISTS (SELECT 1 FROM learned_from l WHERE l.project = p.id AND l.task = t.id));

-- lessons_of_version: What its predictions were made with; first what most tasks have that nobody has annotated.
SELECT j.lesson AS lesson, sum(NOT t.annotated) AS open, count(*) AS n FROM jobs j
JOIN tasks t ON t.project = j.project AND t.id = j.task
WHERE j.project = ? AND j.version = ? AND j.state = 'done' GROUP BY j.lesson ORDER BY open DESC, n DESC, lesson;

-- superseded: Other versions whose predictions Label Studio was given.
SELECT DISTINCT j.version FROM jobs j JOIN projects p ON p.id = j.project AND p.version != j.version
WHERE p.id = ? AND j.delivery != 'open' ORDER BY j.version;


-- Learning: candidates, reviews, and what they taught

-- forget_candidates: Of a task that was deleted.
DELETE FROM candidates WHERE project = ? AND task = ?;

-- keep_candidates: Of a task's latest prediction.
INSERT OR REPLACE INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?);

-- prune_candidates: All but so many of a project, the latest.
DELETE FROM candidates WHERE project = ? AND task IN (SELECT task FROM candidates WHERE project = ?
ORDER BY kept_at DESC, task DESC LIMIT -1 OFFSET ?);

-- candidates_of: One task's.
SELECT * FROM candidates WHERE project = ? AND task = ?;

-- candidates_of_version: Of tasks that are predicted under a version.
SELECT c.task, c.tried FROM candidates c
JOIN jobs j ON j.project = c.project AND j.task = c.task AND j.version = c.version AND j.state = 'done'
WHERE c.project = ? AND c.version = ?;

-- unmeasured: Tasks that were annotated and predicted, and not measured yet.
SELECT t.id AS task FROM tasks t JOIN jobs j ON j.project = t.project AND j.task = t.id AND j.version = ?
AND j.state = 'done' AND j.result IS NOT NULL
WHERE t.project = ? AND t.annotated AND NOT EXISTS (SELECT 1 FROM reviews r WHERE r.project = t.project
AND r.task = t.id AND r.base = ?) ORDER BY t.id;

-- verdict: What a person made of one task's prediction.
SELECT verdict, iou FROM reviews WHERE project = ? AND task = ?;

-- review: One task's.
SELECT * FROM reviews WHERE project = ? AND task = ?;

-- reviews: The latest of a project.
SELECT * FROM reviews WHERE project = ? AND base = ? ORDER BY rowid DESC LIMIT ?;

-- add_review: A task as it was measured.
INSERT OR REPLACE INTO reviews VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- forget_review: A task whose annotation is gone.
DELETE FROM reviews WHERE project = ? AND task = ?;

-- lesson: What a project's reviews taught.
SELECT * FROM lessons WHERE project = ?;

-- set_lesson: What a project's reviews taught.
INSERT OR REPLACE INTO lessons VALUES (?, ?, ?, ?, ?, ?);

-- forget_lesson: Nothing is learned any more.
DELETE FROM lessons WHERE project = ?;

-- evaluation: What a project's reviews say.
SELECT evaluation FROM evaluations WHERE project = ?;

-- set_evaluation: What a project's reviews say.
INSERT OR REPLACE INTO evaluations VALUES (?, ?);

-- set_score: What is learned changes what a prediction's score means, not when it was made.
UPDATE jobs SET score = ?, calibrated = ? WHERE project = ? AND task = ? AND version = ? AND state = 'done';
