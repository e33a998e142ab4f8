-- schema.sql
--   What the other parts share: the schema of the nouns, the clock, and the
--   checks that every verb makes of its arguments.
--
-- Verbs go into the schema that CREATE EXTENSION names, nouns into "kavach".
-- That one may be "kavach" as well, and be renamed otherwise: so no body has its
-- name in it.
-- Every name is qualified, and what others have put into that schema is out of
-- sight while the script runs: it runs as superuser.
-- Nothing is executable by PUBLIC: the last part (role.sql) takes that away.

\echo Use "CREATE EXTENSION kavach" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- CREATE EXTENSION ... SCHEMA kavach needs one that is there, and then it is no member: a dump has to
-- make it before the extension. Who owns it can put functions beside ours.
DO $$
BEGIN
  IF '@extschema@' <> 'kavach' THEN
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'kavach') THEN
      RAISE EXCEPTION 'schema "kavach" already exists'
        USING ERRCODE = 'duplicate_schema',
              DETAIL = 'The tables and views of kavach go into a schema of that name.',
              HINT = 'Drop or rename it; or have everything in it, functions too: CREATE EXTENSION kavach SCHEMA kavach.';
    END IF;
    CREATE SCHEMA kavach;
    COMMENT ON SCHEMA kavach IS
      'What kavach stores and reports: agents, permissions, budgets and the ledger. The verbs are the functions kavach_*.';
  ELSIF NOT (SELECT r.rolsuper FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'kavach') THEN
    RAISE EXCEPTION 'schema "kavach" must be owned by a superuser'
      USING ERRCODE = 'insufficient_privilege',
            DETAIL = 'Its owner could have kavach run functions of his own with the rights of a superuser.',
            HINT = 'ALTER SCHEMA kavach OWNER TO CURRENT_USER.';
  END IF;
END
$$;

CREATE FUNCTION kavach.clock_now()
RETURNS timestamptz
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_clock_now';

COMMENT ON FUNCTION kavach.clock_now() IS
  'The time that decides windows and expiry: the setting kavach.clock, or else the start of the statement.';

CREATE FUNCTION kavach.range_start(since timestamptz, until timestamptz)
RETURNS timestamptz
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_range_start';

COMMENT ON FUNCTION kavach.range_start(timestamptz, timestamptz) IS
  'The lower bound of a report: since, or -infinity where it is NULL. Error 22023 where since is after until.';

CREATE FUNCTION kavach.range_edge(since timestamptz, until timestamptz, whole text, edge int)
RETURNS timestamptz
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_range_edge';

COMMENT ON FUNCTION kavach.range_edge(timestamptz, timestamptz, text, int) IS
  'Where a range is cut: its whole UTC days are from edge 0 to edge 3, the whole months among them from edge 1 to edge 2. whole: monthly; daily or together, of months there are none; NULL: of days neither. What there is none of is empty, at the range''s end.';

CREATE FUNCTION kavach.month_start(year int, month int)
RETURNS timestamptz
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_month_start';

COMMENT ON FUNCTION kavach.month_start(int, int) IS
  'The first instant of a UTC month. Errors: 22004 for NULL, 22023 for a month or year that does not exist.';

CREATE FUNCTION kavach.month_end(year int, month int)
RETURNS timestamptz
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_month_end';

COMMENT ON FUNCTION kavach.month_end(int, int) IS
  'The first instant after a UTC month. Errors: 22004 for NULL, 22023 for a month or year that does not exist.';

-- What scopes, measures and windows there are, and what they are called, is in C (scopes[], measures[], periods[]).
-- These tell it.

CREATE FUNCTION kavach.scope_has_id(scope text)
RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_scope_has_id';

COMMENT ON FUNCTION kavach.scope_has_id(text) IS
  'Whether the subjects of a budget''s scope have ids, or it is one pool; NULL where it is no scope.';

CREATE FUNCTION kavach.of_scope(scope text, agent_id text, user_id text, tenant_id text)
RETURNS text
LANGUAGE c IMMUTABLE PARALLEL SAFE COST 2
AS 'MODULE_PATHNAME', 'kavach_of_scope';

COMMENT ON FUNCTION kavach.of_scope(text, text, text, text) IS
  'The one of these that belongs to the scope; NULL of a scope that has no ids.';

CREATE FUNCTION kavach.policy_scope(agent_id text, user_id text, tenant_id text, "each" text, all_agents boolean)
RETURNS text
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_policy_scope';

COMMENT ON FUNCTION kavach.policy_scope(text, text, text, text, boolean) IS
  'The scope of a policy that is for one of these. Errors: 22023 none or several are given, or each is no scope that has ids.';

CREATE FUNCTION kavach.limit_keys(OUT key text, OUT measure text, OUT period text)
RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 8
AS 'MODULE_PATHNAME', 'kavach_limit_keys';

COMMENT ON FUNCTION kavach.limit_keys() IS
  'What limits there can be: max_tokens_cost_per_hour and so on, as kavach_create_policy takes them and as kavach.budget_limit has them.';

CREATE FUNCTION kavach.is_period(period text)
RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_is_period';

COMMENT ON FUNCTION kavach.is_period(text) IS
  'Whether limits can have this window.';

CREATE FUNCTION kavach.windows(ts timestamptz, OUT period text, OUT period_start timestamptz, OUT period_end timestamptz)
RETURNS SETOF record
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 4
AS 'MODULE_PATHNAME', 'kavach_windows';

COMMENT ON FUNCTION kavach.windows(timestamptz) IS
  'The windows of limits that an instant is in, shortest first, [period_start, period_end) in UTC: the last one from -infinity to NULL.';

CREATE FUNCTION kavach.uuid7_ts(id uuid)
RETURNS timestamptz
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_uuid7_ts';

COMMENT ON FUNCTION kavach.uuid7_ts(uuid) IS
  'The time in a ledger row''s id (UUIDv7, RFC 9562), to the millisecond: lets a search by id skip the other months.';

CREATE FUNCTION kavach.uuid7_since(ts timestamptz, whole_month boolean DEFAULT false)
RETURNS uuid
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_uuid7_since';

COMMENT ON FUNCTION kavach.uuid7_since(timestamptz, boolean) IS
  'The least id that a row from this time on can have; whole_month: from the start of its UTC month on.';

CREATE FUNCTION kavach.uuid7_until(ts timestamptz, whole_month boolean DEFAULT false)
RETURNS uuid
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_uuid7_until';

COMMENT ON FUNCTION kavach.uuid7_until(timestamptz, boolean) IS
  'The least id that no row before this time can have; whole_month: before the end of the UTC month that the last instant before it is in.';

CREATE FUNCTION kavach.check_id(value text, name text, required boolean DEFAULT true, max_bytes int DEFAULT 255)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_check_id';

COMMENT ON FUNCTION kavach.check_id(text, text, boolean, int) IS
  'Raises an error unless value is a possible id, or another short text. Errors: 22004 NULL (if required), 22023 empty, or a user_id that begins with agt_; 22001 over max_bytes.';

CREATE FUNCTION kavach.check_object(value jsonb, name text)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF jsonb_typeof(value) <> 'object' THEN
    RAISE EXCEPTION '% must be a JSON object', name
      USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('It is of type %s.', jsonb_typeof(value));
  END IF;
  RETURN coalesce(value, '{}');
END
$$;

COMMENT ON FUNCTION kavach.check_object(jsonb, text) IS
  'The value, or {} where it is NULL. Error 22023 where it is no JSON object.';

CREATE FUNCTION kavach.note_change()
RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'kavach_note_change';

COMMENT ON FUNCTION kavach.note_change() IS
  'Trigger: tells every session, at commit, that agents (argument agent) or policies (argument policy) have changed.';

CREATE FUNCTION kavach.watch(relation regclass, what text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER note_change BEFORE INSERT OR UPDATE OR DELETE ON %s '
                 'FOR EACH ROW EXECUTE FUNCTION kavach.note_change(%L)', relation, what);
  EXECUTE format('CREATE TRIGGER note_truncate AFTER TRUNCATE ON %s '
                 'FOR EACH STATEMENT EXECUTE FUNCTION kavach.note_change(%L)', relation, what);
  EXECUTE format('COMMENT ON TRIGGER note_change ON %s IS %L', relation,
                 'Every session is told, at commit, that a row has changed.');
  EXECUTE format('COMMENT ON TRIGGER note_truncate ON %s IS %L', relation,
                 'Every session is told, at commit, that all rows are gone.');
  -- whatever the session_replication_role
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER note_change', relation);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER note_truncate', relation);
  RETURN true;
END
$$;

COMMENT ON FUNCTION kavach.watch(regclass, text) IS
  'Puts the triggers of kavach.note_change on a table that calls look up.';

CREATE FUNCTION kavach.make_private(relation regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  grantee record;
BEGIN
  FOR grantee IN
    SELECT DISTINCT a.grantee AS oid
      FROM pg_class c, aclexplode(c.relacl) a
     WHERE c.oid = relation AND a.grantee <> c.relowner
  LOOP
    EXECUTE format('REVOKE ALL ON %s FROM %s', relation,
                   CASE WHEN grantee.oid = 0 THEN 'PUBLIC' ELSE grantee.oid::regrole::text END);
  END LOOP;
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION kavach.make_private(regclass) IS
  'Takes away what default privileges have granted on a new table: only the owner keeps any.';
