-- statements.sql: how often a statement calls, as doc/calling.md says it.
BEGIN;
SELECT plan(4);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
CREATE TEMP TABLE many AS SELECT id FROM generate_series(1, 3) AS id;
CREATE FUNCTION pg_temp.calls(statement text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  before bigint := (SELECT count(*) FROM kavach.audit_log);
  n bigint;
BEGIN
  EXECUTE format('SELECT count(*) FROM (%s OFFSET 0) AS s', statement) INTO n;
  RETURN (SELECT count(*) FROM kavach.audit_log) - before;
END $$;
SELECT is(pg_temp.calls($$SELECT code FROM many, kavach_authorize('agt_a', 'run', 'x')$$), 1::bigint, 'in FROM with constants: one call, whatever is beside it');
SELECT is(pg_temp.calls($$SELECT a.code FROM many m, LATERAL kavach_authorize('agt_a', 'run', 'x', request_id => m.id::text) a$$), 3::bigint, 'with an argument of the row: a call for each');
SELECT is(pg_temp.calls($$SELECT kavach_authorize('agt_a', 'run', 'y') FROM many$$), 3::bigint, 'in the SELECT list: a call for each row');
SELECT cmp_ok(pg_temp.calls($$SELECT (kavach_authorize('agt_a', 'run', 'z')).* FROM many$$), '>', 3::bigint, 'and with .* one for each column of it');
SELECT * FROM finish();
ROLLBACK;
