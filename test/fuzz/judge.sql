-- judge.sql: judges a round of the fuzzer by the server's log: crashes, and errors that nobody
-- expects.  Every row that it prints is a fault.  psql variables: log, the file, in CSV; documented,
-- the SQLSTATEs of doc/reference.md; any, whether any other but an internal error is expected too;
-- report, a file.
--
-- Runs in a database with the encoding SQL_ASCII, which takes what other databases have logged.
\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
\pset fieldsep '\n    '
SET client_min_messages = warning;

CREATE TEMP TABLE log (
  log_time timestamptz(3), user_name text, database_name text, process_id int, connection_from text,
  session_id text, session_line_num bigint, command_tag text, session_start_time timestamptz,
  virtual_transaction_id text, transaction_id bigint, severity text, state text, message text,
  detail text, hint text, internal_query text, internal_query_pos int, context text, query text,
  query_pos int, location text, application_name text, backend_type text, leader_pid int, query_id bigint);
COPY log FROM :'log' (FORMAT csv, ENCODING 'SQL_ASCII');

-- What is expected besides what kavach documents; where: only if the message, statement or context
-- matches.
CREATE TEMP TABLE expected (state text, reason text, where_ text DEFAULT '');
INSERT INTO expected SELECT s, 'kavach documents it' FROM unnest(string_to_array(:'documented', ',')) AS s;
INSERT INTO expected VALUES
  ('FUZZZ', 'raised by the fuzzer'),
  ('01000', 'the warning of kavach_record_usage in the authorizing transaction'),
  ('39P01', 'kavach''s trigger functions on tables that are not kavach''s'), ('39P03', 'its event triggers called directly'),
  ('0A000', 'trigger functions called directly, conversions that do not exist, TRUNCATE FOR EACH ROW'),
  ('21000', 'MERGE that meets a row twice'),
  ('22021', 'invalid bytes'),
  ('22P05', 'characters that the other encoding lacks'),
  ('22023', 'settings'), ('22P02', 'settings'),
  ('25000', 'kavach in a parallel worker'),
  ('25001', 'SET TRANSACTION after a query'), ('25P01', 'no transaction'), ('25P02', 'aborted transaction'),
  ('25006', 'read only'),
  ('26000', 'prepared statement that failed'), ('34000', 'cursor that failed'), ('42P03', 'cursor'), ('42P05', 'prepared statement'),
  ('3B001', 'savepoint that is not there'), ('2D000', 'COMMIT in a block within a transaction'), ('55000', 'FETCH BACKWARD'),
  ('40001', 'serialization'), ('40P01', 'deadlock'), ('55P03', 'lock_timeout, NOWAIT'), ('57014', 'cancel, timeouts'),
  ('55006', 'tables in use by the session'), ('55P02', 'settings that need a restart'), ('42704', 'settings'),
  ('08006', 'psql was ended'), ('57P03', 'after a crash'), ('54000', 'too large'), ('54001', 'too deep'),
  ('42501', 'roles without rights');
INSERT INTO expected VALUES
  ('42710', 'a trigger that is there', 'trigger'), ('42809', 'not a table', 'TRIGGER|MODE|TRUNCATE|DELETE|UPDATE|MERGE|REVOKE'),
  ('57P01', 'psql was ended', 'parallel worker'), ('2BP01', 'what belongs to the extension', '^cannot drop'),
  ('42P07', 'a table that is there', 'pg_temp|fuzzed|CREATE TEMP'), ('42P01', 'a table that is not there', 'pg_temp|fuzz|nowhere|"w"'),
  ('3F000', 'no temporary schema yet', 'pg_temp'),
  ('42P17', 'functions that are not immutable', 'pg_temp.w'), ('42883', 'a function that is not there', 'pg_temp.w'), ('23514', 'functions in constraints', 'relation "w"'),
  ('23502', 'helpers trust their callers', 'kavach.merge_limits'), ('42601', 'helpers trust their callers', 'kavach.(watch|make_private)');
INSERT INTO expected SELECT DISTINCT state, 'sqlsmith guesses' FROM log WHERE :any AND state !~ '^XX';

CREATE TEMP VIEW fault AS
SELECT CASE WHEN l.severity = 'WARNING' THEN 'caught' ELSE l.severity END AS what, l.*
  FROM log l
 WHERE severity = 'PANIC'
    OR message ~ 'was terminated by signal|exited with exit code (?!0$|1$)|TRAP:|cache lookup failed'
    OR (severity IN ('WARNING', 'ERROR', 'FATAL')
        AND NOT EXISTS (SELECT FROM expected e
                         WHERE e.state = l.state AND concat_ws(' ', l.message, l.query, l.context, l.detail) ~* e.where_));

SELECT format('%s %s: %s (%s, %s times)', min(what), state, min(left(message, 500)), location, count(*)),
       'in: ' || coalesce((array_agg(application_name ORDER BY log_time))[1], ''),
       'statement: ' || coalesce((array_agg(left(query, 4000) ORDER BY log_time))[1], ''),
       'detail: ' || coalesce((array_agg(left(detail, 4000) ORDER BY log_time))[1], ''),
       'context: ' || coalesce((array_agg(left(context, 1000) ORDER BY log_time))[1], '')
  FROM fault
 GROUP BY state, location, regexp_replace(left(message, 60), '["''].*|[0-9]+', '', 'g')
 ORDER BY min(log_time);

-- A parallel worker that crashes names no statement: what the sessions have last complained about.
SELECT format('before the crash, %s: %s', application_name, left(query, 500))
  FROM (SELECT DISTINCT ON (application_name) * FROM log
         WHERE application_name ~ '^fuzz' AND query IS NOT NULL
           AND log_time <= (SELECT min(log_time) FROM log WHERE message ~ 'was terminated by signal')
         ORDER BY application_name, log_time DESC, session_line_num DESC) AS l;

\o :report
SELECT format('%s errors and warnings: ', sum(n)), string_agg(format('%s %s', n, state), ', ' ORDER BY n DESC)
  FROM (SELECT state, count(*) AS n FROM log WHERE severity IN ('WARNING', 'ERROR', 'FATAL') GROUP BY state) AS s;
\o
