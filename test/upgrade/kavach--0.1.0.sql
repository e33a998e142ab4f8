-- schema.sql
--   What the other parts share: the schema of the nouns, the clock, and the
--   checks that every verb makes of its arguments.
--
-- Verbs go into the schema that CREATE EXTENSION names, nouns into "kavach".
-- Every name is qualified, and what others have put into that schema is out of
-- sight while the script runs: it runs as superuser.
-- Nothing is executable by PUBLIC: the last part (role.sql) takes that away.

\echo Use "CREATE EXTENSION kavach" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE SCHEMA kavach;

COMMENT ON SCHEMA kavach IS
  'What kavach stores and reports: agents, permissions, budgets and the ledger. The verbs are the functions kavach_*.';

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

CREATE FUNCTION kavach.uuid7_ts(id uuid)
RETURNS timestamptz
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_uuid7_ts';

COMMENT ON FUNCTION kavach.uuid7_ts(uuid) IS
  'The time in a ledger row''s id (UUIDv7, RFC 9562), to the millisecond: lets a search by id skip the other months.';

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
-- agent.sql
--   Who acts: agents, their owners and their life.

CREATE TABLE kavach.agent (
  agent_id          text PRIMARY KEY,
  user_id           text NOT NULL,
  tenant_id         text,
  name              text,
  status            text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'revoked')),
  status_reason     text,
  status_changed_at timestamptz,
  expires_at        timestamptz,
  metadata          jsonb NOT NULL DEFAULT '{}',
  created_at        timestamptz NOT NULL DEFAULT kavach.clock_now()
);

SELECT pg_catalog.pg_extension_config_dump('kavach.agent', '');
SELECT kavach.watch('kavach.agent', 'agent');

COMMENT ON TABLE kavach.agent IS 'Agents: who may call at all. Written by kavach_create_agent and its siblings.';
COMMENT ON COLUMN kavach.agent.agent_id IS 'The agent''s id: agt_... where kavach made it, at most 255 bytes.';
COMMENT ON COLUMN kavach.agent.user_id IS 'Its owner, in the application''s own terms: the user that its calls are billed to.';
COMMENT ON COLUMN kavach.agent.tenant_id IS 'The tenant that its calls are billed to; NULL for none.';
COMMENT ON COLUMN kavach.agent.name IS 'A name for people.';
COMMENT ON COLUMN kavach.agent.status IS 'active, or revoked: every call is refused.';
COMMENT ON COLUMN kavach.agent.status_reason IS 'Why the status was last changed.';
COMMENT ON COLUMN kavach.agent.status_changed_at IS 'When the status was last changed.';
COMMENT ON COLUMN kavach.agent.expires_at IS 'From this instant on every call is refused; NULL: never.';
COMMENT ON COLUMN kavach.agent.metadata IS 'The application''s own notes, a JSON object.';
COMMENT ON COLUMN kavach.agent.created_at IS 'When the agent was created.';

CREATE FUNCTION kavach.check_agent(agent_id text)
RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM kavach.check_id(agent_id, 'agent_id');
  IF NOT EXISTS (SELECT FROM kavach.agent a WHERE a.agent_id = check_agent.agent_id) THEN
    RAISE EXCEPTION 'agent "%" does not exist', agent_id
      USING ERRCODE = 'undefined_object',
            HINT = 'Create it with kavach_create_agent().';
  END IF;
  RETURN true;
END
$$;

COMMENT ON FUNCTION kavach.check_agent(text) IS
  'Raises an error unless the agent exists. Errors: those of kavach.check_id, 42704 for an unknown agent.';

CREATE FUNCTION @extschema@.kavach_create_agent(
  agent_id    text DEFAULT NULL,
  user_id     text DEFAULT NULL,
  tenant_id   text DEFAULT NULL,
  name        text DEFAULT NULL,
  permissions jsonb DEFAULT '[]',
  expires_at  timestamptz DEFAULT NULL,
  metadata    jsonb DEFAULT '{}')
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  new_id text := coalesce(agent_id, 'agt_' || replace(gen_random_uuid()::text, '-', ''));
BEGIN
  PERFORM kavach.check_id(new_id, 'agent_id'),
          kavach.check_id(user_id, 'user_id'),
          kavach.check_id(tenant_id, 'tenant_id', required => false),
          kavach.check_id(name, 'name', required => false);

  INSERT INTO kavach.agent (agent_id, user_id, tenant_id, name, expires_at, metadata)
  VALUES (new_id, user_id, tenant_id, name, expires_at, kavach.check_object(metadata, 'metadata'))
  ON CONFLICT ON CONSTRAINT agent_pkey DO NOTHING;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'agent "%" already exists', new_id
      USING ERRCODE = 'unique_violation',
            HINT = 'Change it with kavach_update_agent(), or leave agent_id out to have one made.';
  END IF;

  PERFORM kavach.grant_permissions(new_id, permissions);
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_create_agent(text, text, text, text, jsonb, timestamptz, jsonb) IS
'Creates an agent and returns its id.
agent_id: NULL makes one (agt_...); user_id: required, its owner; tenant_id, name: optional;
permissions: [{"resource": ..., "actions": [...], "constraints": {...}}], as for kavach_grant_permission;
expires_at: from then on its calls are refused; metadata: a JSON object.
Errors: 22004, 22023, 22001 bad input; 23505 the id is taken.';

CREATE FUNCTION @extschema@.kavach_update_agent(agent_id text, changes jsonb)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  old kavach.agent;
  new kavach.agent;
  key text;
  value jsonb;
BEGIN
  PERFORM kavach.check_agent(kavach_update_agent.agent_id);
  IF changes IS NULL THEN
    RAISE EXCEPTION 'changes must not be NULL'
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  PERFORM kavach.check_object(changes, 'changes');

  SELECT * INTO old FROM kavach.agent a WHERE a.agent_id = kavach_update_agent.agent_id FOR UPDATE;
  new := old;
  FOR key, value IN SELECT * FROM jsonb_each(changes) LOOP
    IF key NOT IN ('user_id', 'tenant_id', 'name', 'expires_at', 'metadata') THEN
      RAISE EXCEPTION 'unrecognized change "%"', key
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = 'What can be changed is user_id, tenant_id, name, expires_at and metadata.';
    END IF;
    IF key <> 'metadata' AND jsonb_typeof(value) NOT IN ('string', 'null') THEN
      RAISE EXCEPTION '% must be a JSON string or null', key
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    CASE key
      WHEN 'user_id' THEN new.user_id := value #>> '{}';
      WHEN 'tenant_id' THEN new.tenant_id := value #>> '{}';
      WHEN 'name' THEN new.name := value #>> '{}';
      WHEN 'expires_at' THEN new.expires_at := (value #>> '{}')::timestamptz;
      WHEN 'metadata' THEN new.metadata := kavach.check_object(nullif(value, 'null'), 'metadata');
    END CASE;
  END LOOP;
  PERFORM kavach.check_id(new.user_id, 'user_id'),
          kavach.check_id(new.tenant_id, 'tenant_id', required => false),
          kavach.check_id(new.name, 'name', required => false);

  UPDATE kavach.agent a
     SET (user_id, tenant_id, name, expires_at, metadata) =
         (SELECT new.user_id, new.tenant_id, new.name, new.expires_at, new.metadata)
   WHERE a.agent_id = kavach_update_agent.agent_id AND old IS DISTINCT FROM new;
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_update_agent(text, jsonb) IS
'Changes an agent: true if something changed.
changes: a JSON object with user_id, tenant_id, name, expires_at (a timestamp as text) or metadata; a JSON null clears (user_id cannot be cleared).
What the ledger holds stays as it was: earlier calls belong to the earlier owner.
Errors: 22004, 22023, 22001, 22007, 22008 bad input; 42704 unknown agent.';

CREATE FUNCTION @extschema@.kavach_revoke_agent(agent_id text, reason text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_agent(kavach_revoke_agent.agent_id),
          kavach.check_id(reason, 'reason', required => false, max_bytes => 2048);
  UPDATE kavach.agent a
     SET status = 'revoked', status_reason = reason, status_changed_at = kavach.clock_now()
   WHERE a.agent_id = kavach_revoke_agent.agent_id AND a.status <> 'revoked';
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_revoke_agent(text, text) IS
'Revokes an agent, so that every later call is refused with agent_revoked: true if it was not revoked yet.
reason: kept in kavach.agent.status_reason and told to callers, at most 2 kB.
Errors: 22004, 22023, 22001 bad input; 42704 unknown agent.';

CREATE FUNCTION @extschema@.kavach_restore_agent(agent_id text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_agent(kavach_restore_agent.agent_id);
  UPDATE kavach.agent a
     SET status = 'active', status_reason = NULL, status_changed_at = kavach.clock_now()
   WHERE a.agent_id = kavach_restore_agent.agent_id AND a.status <> 'active';
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_restore_agent(text) IS
'Makes a revoked agent active again: true if it was revoked. An expired one stays expired (kavach_update_agent changes that).
Errors: 22004, 22023, 22001 bad input; 42704 unknown agent.';
-- permission.sql
--   What agents may do: resource patterns, actions and constraints.
--   How they are matched is in src/permission.c.
--
-- No foreign key, here and in policy.sql: pg_restore -j copies the tables of an
-- extension in any order.

CREATE TABLE kavach.permission (
  permission_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_id      text NOT NULL,
  resource      text NOT NULL,
  actions       text[] NOT NULL,
  constraints   jsonb NOT NULL DEFAULT '{}',
  created_at    timestamptz NOT NULL DEFAULT kavach.clock_now()
);

CREATE INDEX permission_agent_id_idx ON kavach.permission (agent_id, permission_id);

SELECT pg_catalog.pg_extension_config_dump('kavach.permission', '');
SELECT kavach.watch('kavach.permission', 'agent');
SELECT pg_catalog.pg_extension_config_dump('kavach.permission_permission_id_seq', '');

COMMENT ON TABLE kavach.permission IS 'What agents may do. Written by kavach_grant_permission and kavach_revoke_permission.';
COMMENT ON COLUMN kavach.permission.permission_id IS 'Permissions are tried in this order.';
COMMENT ON COLUMN kavach.permission.agent_id IS 'The agent that holds the permission.';
COMMENT ON COLUMN kavach.permission.resource IS 'Colon-separated pattern: * is one segment, a trailing ** any further ones, * alone everything.';
COMMENT ON COLUMN kavach.permission.actions IS 'The actions allowed; * for any.';
COMMENT ON COLUMN kavach.permission.constraints IS 'max_calls_per_hour, allowed_arg_patterns, time_window, ip_allowlist; all of them must hold.';
COMMENT ON COLUMN kavach.permission.created_at IS 'When it was granted.';
COMMENT ON SEQUENCE kavach.permission_permission_id_seq IS 'Ids of permissions.';

CREATE FUNCTION kavach.check_permission(resource text, actions text[], constraints jsonb)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_check_permission';

COMMENT ON FUNCTION kavach.check_permission(text, text[], jsonb) IS
  'Raises an error unless pattern, actions and constraints are well formed. Errors: 22004, 22023, 22001, 22P02, 22007, 22008.';

CREATE FUNCTION @extschema@.kavach_grant_permission(
  agent_id    text,
  resource    text,
  actions     text[],
  constraints jsonb DEFAULT '{}')
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  new_id bigint;
BEGIN
  PERFORM kavach.check_agent(agent_id),
          kavach.check_permission(resource, actions, constraints);
  INSERT INTO kavach.permission (agent_id, resource, actions, constraints)
  VALUES (agent_id, resource, actions, constraints)
  RETURNING permission_id INTO new_id;
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_grant_permission(text, text, text[], jsonb) IS
'Grants a permission and returns its id.
resource: a colon-separated pattern; a segment is literal or * (exactly one segment), a trailing ** stands for one or more, * alone for everything;
actions: names, or * for any;
constraints: {"max_calls_per_hour": n, "allowed_arg_patterns": [glob, ...], "time_window": {"start": "HH:MM", "end": "HH:MM"} (UTC, may cross midnight), "ip_allowlist": [CIDR, ...]}.
Errors: 22004, 22023, 22001, 22P02 bad input; 42704 unknown agent.';

CREATE FUNCTION @extschema@.kavach_revoke_permission(permission_id bigint)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  IF kavach_revoke_permission.permission_id IS NULL THEN
    RAISE EXCEPTION 'permission_id must not be NULL'
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  DELETE FROM kavach.permission p WHERE p.permission_id = kavach_revoke_permission.permission_id;
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_revoke_permission(bigint) IS
'Takes a permission away: true if it was there. The ledger goes on naming it in permission_id.
Errors: 22004 NULL.';

CREATE FUNCTION kavach.grant_permissions(agent_id text, permissions jsonb)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  permission jsonb;
  key text;
  granted bigint := 0;
BEGIN
  IF jsonb_typeof(permissions) <> 'array' THEN
    RAISE EXCEPTION 'permissions must be a JSON array'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Write [{"resource": ..., "actions": [...], "constraints": {...}}].';
  END IF;

  FOR permission IN SELECT * FROM jsonb_array_elements(permissions) LOOP
    IF jsonb_typeof(permission) <> 'object'
       OR jsonb_typeof(permission -> 'resource') IS DISTINCT FROM 'string'
       OR jsonb_typeof(permission -> 'actions') IS DISTINCT FROM 'array'
       OR jsonb_path_exists(permission, 'strict $.actions[*] ? (@.type() != "string")') THEN
      RAISE EXCEPTION 'a permission needs a resource and a list of actions'
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = format('It reads %s.', permission),
              HINT = 'Write {"resource": "mcp:openai:*", "actions": ["execute"], "constraints": {}}.';
    END IF;
    FOR key IN SELECT * FROM jsonb_object_keys(permission) LOOP
      IF key NOT IN ('resource', 'actions', 'constraints') THEN
        RAISE EXCEPTION 'unrecognized key "%" in a permission', key
          USING ERRCODE = 'invalid_parameter_value',
                DETAIL = 'A permission has resource, actions and constraints.';
      END IF;
    END LOOP;
    PERFORM @extschema@.kavach_grant_permission(
      agent_id,
      permission ->> 'resource',
      ARRAY(SELECT jsonb_array_elements_text(permission -> 'actions')),
      coalesce(permission -> 'constraints', '{}'));
    granted := granted + 1;
  END LOOP;
  RETURN granted;
END
$$;

COMMENT ON FUNCTION kavach.grant_permissions(text, jsonb) IS
  'Grants the permissions of kavach_create_agent and returns how many. Errors: 22023 malformed, and those of kavach_grant_permission.';
-- ledger.sql
--   The ledger: kavach.audit_log, one row per decision or usage record.
--
-- Append-only, for everyone.  Partitioned by UTC month; the parent carries no
-- primary key and no index, or else pg_restore fails ("multiple primary
-- keys"): each partition has its own (src/partition.c makes them), and is no
-- member of the extension, so that pg_dump dumps it as any table.

CREATE TABLE kavach.audit_log (
  id                 uuid NOT NULL,
  ts                 timestamptz NOT NULL,
  batch              bigint NOT NULL DEFAULT 0,
  kind               text NOT NULL CHECK (kind IN ('authorize', 'usage', 'adjustment')),
  agent_id           text NOT NULL,
  user_id            text,
  tenant_id          text,
  action             text,
  resource           text,
  arguments          jsonb,
  ip                 inet,
  result             text NOT NULL CHECK (result IN ('allowed', 'denied', 'rate_limited')),
  code               text NOT NULL,
  reason             text,
  permission_id      bigint,
  policy_id          text,
  tokens_requested   bigint,
  min_tokens         bigint,
  tokens_released    bigint,
  tokens_cost        bigint,
  settles            uuid,
  request_id         text,
  provider           text,
  model              text,
  tokens_input       bigint,
  tokens_output      bigint,
  tokens_cache_read  bigint,
  tokens_cache_write bigint,
  cost               numeric,
  metadata           jsonb
) PARTITION BY RANGE (ts);

COMMENT ON TABLE kavach.audit_log IS 'The ledger: one row per decision or usage record, append-only, partitioned by month. Reports read it as kavach.ledger.';
COMMENT ON COLUMN kavach.audit_log.id IS 'UUIDv7 (RFC 9562): sorts by time.';
COMMENT ON COLUMN kavach.audit_log.ts IS 'Clock time of the call: decides its windows and its month.';
COMMENT ON COLUMN kavach.audit_log.batch IS 'The batch that the row belongs to; 0 as long as there are none.';
COMMENT ON COLUMN kavach.audit_log.kind IS 'authorize, usage or adjustment.';
COMMENT ON COLUMN kavach.audit_log.agent_id IS 'Who called, as the caller named it.';
COMMENT ON COLUMN kavach.audit_log.user_id IS 'The agent''s owner at that time; NULL for an unknown agent.';
COMMENT ON COLUMN kavach.audit_log.tenant_id IS 'The agent''s tenant at that time.';
COMMENT ON COLUMN kavach.audit_log.action IS 'What was asked: the action.';
COMMENT ON COLUMN kavach.audit_log.resource IS 'What was asked: the resource.';
COMMENT ON COLUMN kavach.audit_log.arguments IS 'What was asked: the arguments, a JSON object.';
COMMENT ON COLUMN kavach.audit_log.ip IS 'Where the call came from, as the caller gave it.';
COMMENT ON COLUMN kavach.audit_log.result IS 'allowed, denied or rate_limited.';
COMMENT ON COLUMN kavach.audit_log.code IS 'Stable machine code of the outcome.';
COMMENT ON COLUMN kavach.audit_log.reason IS 'A sentence for people.';
COMMENT ON COLUMN kavach.audit_log.permission_id IS 'The permission that admitted the call; NULL when it was refused.';
COMMENT ON COLUMN kavach.audit_log.policy_id IS 'The budget that decided, if one did.';
COMMENT ON COLUMN kavach.audit_log.tokens_requested IS 'The caller''s argument tokens_cost: an estimate (authorize) or the actual figure (usage); NULL if it gave none.';
COMMENT ON COLUMN kavach.audit_log.min_tokens IS 'The caller''s argument min_tokens.';
COMMENT ON COLUMN kavach.audit_log.tokens_released IS 'On a settling row: the estimate that it replaces.';
COMMENT ON COLUMN kavach.audit_log.tokens_cost IS 'What this row charges. Every total is sum(tokens_cost): 0 when refused, NULL when admitted without a cost, negative for a refund.';
COMMENT ON COLUMN kavach.audit_log.settles IS 'On a usage row: the id of the authorization that it settles.';
COMMENT ON COLUMN kavach.audit_log.request_id IS 'The caller''s key for this call.';
COMMENT ON COLUMN kavach.audit_log.provider IS 'Who served the call, when known.';
COMMENT ON COLUMN kavach.audit_log.model IS 'The model that served it, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_input IS 'Input tokens, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_output IS 'Output tokens, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_cache_read IS 'Tokens read from a cache, when known.';
COMMENT ON COLUMN kavach.audit_log.tokens_cache_write IS 'Tokens written to a cache, when known.';
COMMENT ON COLUMN kavach.audit_log.cost IS 'Its price, when known.';
COMMENT ON COLUMN kavach.audit_log.metadata IS 'The application''s own notes, a JSON object.';

CREATE FUNCTION kavach.refuse_change()
RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'kavach_refuse_change';

COMMENT ON FUNCTION kavach.refuse_change() IS
  'Trigger: the ledger is append-only. Error 42501, for the owner as well.';

-- Row triggers, which the partitions inherit, as logical replication fires no
-- statement triggers; those on TRUNCATE are not inherited, so that src/partition.c
-- gives each partition its own.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON kavach.audit_log
  FOR EACH ROW EXECUTE FUNCTION kavach.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON kavach.audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION kavach.refuse_change();
ALTER TABLE kavach.audit_log ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE kavach.audit_log ENABLE ALWAYS TRIGGER append_only_truncate;
COMMENT ON TRIGGER append_only ON kavach.audit_log IS 'No row is changed or removed, by the owner neither.';
COMMENT ON TRIGGER append_only_truncate ON kavach.audit_log IS 'Nor are all of them.';

CREATE FUNCTION kavach.guard_ledger()
RETURNS event_trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'kavach_guard_ledger';

COMMENT ON FUNCTION kavach.guard_ledger() IS
  'Event trigger: the ledger''s tables are not dropped or detached while it holds rows. Error 42501, unless kavach.allow_drop is on.';

-- Whatever may drop the ledger, by CASCADE too: src/guard.c has how.
CREATE EVENT TRIGGER kavach_guard_ledger ON ddl_command_start
  WHEN TAG IN ('ALTER TABLE', 'DROP ACCESS METHOD', 'DROP COLLATION', 'DROP DOMAIN', 'DROP EXTENSION',
               'DROP FOREIGN DATA WRAPPER', 'DROP FOREIGN TABLE', 'DROP FUNCTION', 'DROP INDEX', 'DROP LANGUAGE',
               'DROP MATERIALIZED VIEW', 'DROP OWNED', 'DROP ROUTINE', 'DROP SCHEMA', 'DROP SEQUENCE', 'DROP SERVER',
               'DROP TABLE', 'DROP TRIGGER', 'DROP TYPE', 'DROP VIEW')
  EXECUTE FUNCTION kavach.guard_ledger();
ALTER EVENT TRIGGER kavach_guard_ledger ENABLE ALWAYS;

COMMENT ON EVENT TRIGGER kavach_guard_ledger IS 'Keeps the ledger''s tables from being dropped or detached while it holds rows.';

CREATE VIEW kavach.ledger AS
SELECT * FROM kavach.audit_log;

COMMENT ON VIEW kavach.ledger IS 'kavach.audit_log as reports read it: with the owner''s rights.';

CREATE VIEW kavach.unsettled AS
SELECT a.*
  FROM kavach.audit_log a
 WHERE a.kind = 'authorize' AND a.result = 'allowed' AND a.tokens_cost IS NOT NULL
   AND NOT EXISTS (SELECT FROM kavach.audit_log u WHERE u.settles = a.id);

COMMENT ON VIEW kavach.unsettled IS 'Admitted calls with a cost that nobody has settled yet: settle them with kavach_record_usage, 0 tokens where the model was not called.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT v.oid::regclass AS view, a.attname, col_description('kavach.audit_log'::regclass, b.attnum) AS text
      FROM unnest(ARRAY['kavach.ledger', 'kavach.unsettled']::regclass[]) v(oid)
      JOIN pg_attribute a ON a.attrelid = v.oid AND a.attnum > 0
      JOIN pg_attribute b ON b.attrelid = 'kavach.audit_log'::regclass AND b.attname = a.attname
  LOOP
    EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', c.view, c.attname, c.text);
  END LOOP;
END
$$;
-- counter.sql
--   What is counted in memory, for operators: src/counter.c has how.

CREATE FUNCTION kavach.current_usage(
  scope text, subject text, period text, committed boolean,
  OUT period_start timestamptz, OUT tokens bigint, OUT calls bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_current_usage';

COMMENT ON FUNCTION kavach.current_usage(text, text, text, boolean) IS
  'What a subject has used in the current window: from its counter, or the ledger where it has none. committed: without what this transaction has charged itself. Errors: 22004, 22023 bad input.';

CREATE FUNCTION kavach.read_counters(
  OUT scope text, OUT subject text, OUT period text, OUT period_start timestamptz,
  OUT tokens_used bigint, OUT tokens_pending bigint, OUT calls_used bigint, OUT calls_pending bigint,
  OUT pins int)
RETURNS SETOF record
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_counters';

COMMENT ON FUNCTION kavach.read_counters() IS
  'The rows of kavach.counters.';

CREATE VIEW kavach.counters AS
SELECT * FROM kavach.read_counters();

COMMENT ON VIEW kavach.counters IS 'The usage counters of this database that are in memory; figures are NULL in one that is not loaded yet.';
COMMENT ON COLUMN kavach.counters.scope IS 'agent, user, tenant, all, or permission (its rate per hour).';
COMMENT ON COLUMN kavach.counters.subject IS 'The agent, user, tenant or permission id; NULL for all.';
COMMENT ON COLUMN kavach.counters.period IS 'hour, day, month, total, or five_minutes of a rate per hour.';
COMMENT ON COLUMN kavach.counters.period_start IS 'Start of the window (UTC); -infinity for total.';
COMMENT ON COLUMN kavach.counters.tokens_used IS 'Tokens charged by committed transactions.';
COMMENT ON COLUMN kavach.counters.tokens_pending IS 'Tokens charged by open transactions.';
COMMENT ON COLUMN kavach.counters.calls_used IS 'Admitted calls of committed transactions.';
COMMENT ON COLUMN kavach.counters.calls_pending IS 'Admitted calls of open transactions.';
COMMENT ON COLUMN kavach.counters.pins IS 'How often open transactions hold it, so that it is not evicted.';

CREATE FUNCTION kavach.read_counter_stats(OUT loads bigint, OUT evictions bigint, OUT refusals bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_counter_stats';

COMMENT ON FUNCTION kavach.read_counter_stats() IS
  'The row of kavach.counter_stats.';

CREATE VIEW kavach.counter_stats AS
SELECT * FROM kavach.read_counter_stats();

COMMENT ON VIEW kavach.counter_stats IS 'What the counters of this server have been through since its start.';
COMMENT ON COLUMN kavach.counter_stats.loads IS 'Times that a subject''s counters were read from the ledger.';
COMMENT ON COLUMN kavach.counter_stats.evictions IS 'Counters that made room for others.';
COMMENT ON COLUMN kavach.counter_stats.refusals IS 'Calls that failed because every counter was in use (53200).';

CREATE FUNCTION @extschema@.kavach_reload_counters()
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_reload_counters';

COMMENT ON FUNCTION @extschema@.kavach_reload_counters() IS
'Drops the counters of this database from memory, so that they are read from the ledger again, and returns how many. Needed only after rows were put into the ledger by hand, with an id of their time (UUIDv7).
Waits for open transactions that have called kavach, and holds up others until this one ends.
Errors: 25001 in a transaction that has called kavach itself; 55000 where kavach is not preloaded.';
-- policy.sql
--   Budgets: policies, their limits, and what a reset forgives.
--   How they are applied is in src/budget.c.

CREATE TABLE kavach.budget_policy (
  policy_id  text PRIMARY KEY,
  scope      text NOT NULL CHECK (scope IN ('agent', 'user', 'tenant', 'all')),
  subject    text,
  each       boolean NOT NULL DEFAULT false,
  action     text NOT NULL DEFAULT 'block' CHECK (action IN ('warn', 'throttle', 'block', 'revoke')),
  enabled    boolean NOT NULL DEFAULT true,
  created_at timestamptz NOT NULL DEFAULT kavach.clock_now(),
  CONSTRAINT budget_policy_one_scope CHECK (
    CASE WHEN scope = 'all' THEN subject IS NULL AND NOT each
         ELSE each = (subject IS NULL) END)
);

CREATE INDEX budget_policy_scope_idx ON kavach.budget_policy (scope, subject);

SELECT pg_catalog.pg_extension_config_dump('kavach.budget_policy', '');
SELECT kavach.watch('kavach.budget_policy', 'policy');

COMMENT ON TABLE kavach.budget_policy IS 'Budgets: whom they bind and what happens at the limit. Written by kavach_create_policy and its siblings.';
COMMENT ON COLUMN kavach.budget_policy.policy_id IS 'pol_..., as callers and the ledger name it.';
COMMENT ON COLUMN kavach.budget_policy.scope IS 'agent, user, tenant, or all: one pool for everybody.';
COMMENT ON COLUMN kavach.budget_policy.subject IS 'The agent, user or tenant; NULL for all, and for an each policy.';
COMMENT ON COLUMN kavach.budget_policy.each IS 'Whether it is one limit for every subject of the scope separately.';
COMMENT ON COLUMN kavach.budget_policy.action IS 'warn, throttle, block or revoke: what happens when a limit would be passed.';
COMMENT ON COLUMN kavach.budget_policy.enabled IS 'Whether it is applied.';
COMMENT ON COLUMN kavach.budget_policy.created_at IS 'When it was created.';

CREATE TABLE kavach.budget_limit (
  policy_id text NOT NULL,
  measure   text NOT NULL CHECK (measure IN ('tokens', 'calls')),
  period    text NOT NULL CHECK (period IN ('hour', 'day', 'month', 'total')),
  amount    bigint NOT NULL CHECK (amount >= 0),
  PRIMARY KEY (policy_id, measure, period)
);

SELECT pg_catalog.pg_extension_config_dump('kavach.budget_limit', '');
SELECT kavach.watch('kavach.budget_limit', 'policy');

COMMENT ON TABLE kavach.budget_limit IS 'The limits of the policies, one a row.';
COMMENT ON COLUMN kavach.budget_limit.policy_id IS 'The policy.';
COMMENT ON COLUMN kavach.budget_limit.measure IS 'tokens, or calls (admitted ones).';
COMMENT ON COLUMN kavach.budget_limit.period IS 'hour, day, month (UTC) or total.';
COMMENT ON COLUMN kavach.budget_limit.amount IS 'The most that the window may hold.';

CREATE TABLE kavach.budget_baseline (
  policy_id    text NOT NULL,
  measure      text NOT NULL,
  period       text NOT NULL,
  subject      text,
  period_start timestamptz NOT NULL,
  usage        bigint NOT NULL,
  CONSTRAINT budget_baseline_key UNIQUE NULLS NOT DISTINCT (policy_id, measure, period, subject)
);
-- No primary key, as subject may be NULL: a publication of all tables would refuse its updates.
ALTER TABLE kavach.budget_baseline REPLICA IDENTITY FULL;

SELECT pg_catalog.pg_extension_config_dump('kavach.budget_baseline', '');
SELECT kavach.watch('kavach.budget_baseline', 'policy');

COMMENT ON TABLE kavach.budget_baseline IS 'What a reset forgives: a limit counts what was used beyond this, in that window.';
COMMENT ON COLUMN kavach.budget_baseline.policy_id IS 'The policy.';
COMMENT ON COLUMN kavach.budget_baseline.measure IS 'The limit''s measure.';
COMMENT ON COLUMN kavach.budget_baseline.period IS 'The limit''s period.';
COMMENT ON COLUMN kavach.budget_baseline.subject IS 'The agent, user or tenant; NULL for all.';
COMMENT ON COLUMN kavach.budget_baseline.period_start IS 'The window that was reset; -infinity for total.';
COMMENT ON COLUMN kavach.budget_baseline.usage IS 'The subject''s usage of that window at the reset.';

CREATE FUNCTION kavach.limits(limits jsonb, OUT measure text, OUT period text, OUT amount bigint)
RETURNS SETOF record
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  key text;
  value jsonb;
  part text[];
BEGIN
  PERFORM kavach.check_object(limits, 'limits');
  FOR key, value IN SELECT * FROM jsonb_each(limits) LOOP
    part := regexp_match(key, '^max_(tokens_cost|calls)_(?:per_(hour|day|month)|(total))$');
    IF part IS NULL THEN
      RAISE EXCEPTION 'unrecognized limit "%"', key
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = 'Valid limits are max_tokens_cost_per_hour, max_tokens_cost_per_day, max_tokens_cost_per_month, '
                       'max_tokens_cost_total, max_calls_per_hour, max_calls_per_day, max_calls_per_month and max_calls_total.',
              HINT = 'To remove a limit, set it to null.';
    END IF;
    IF jsonb_typeof(value) = 'number' THEN
      IF (value #>> '{}')::numeric <> trunc((value #>> '{}')::numeric) OR (value #>> '{}')::numeric < 0 THEN
        RAISE EXCEPTION 'limit "%" must be a whole number of at least 0', key
          USING ERRCODE = 'invalid_parameter_value';
      END IF;
      amount := (value #>> '{}')::numeric::bigint;
    ELSIF jsonb_typeof(value) = 'null' THEN
      amount := NULL;
    ELSE
      RAISE EXCEPTION 'limit "%" must be a number or null', key
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    measure := CASE part[1] WHEN 'calls' THEN 'calls' ELSE 'tokens' END;
    period := coalesce(part[2], part[3]);
    RETURN NEXT;
  END LOOP;
END
$$;

COMMENT ON FUNCTION kavach.limits(jsonb) IS
  'The limits of {"max_tokens_cost_per_month": 5000} as rows; amount is NULL for a JSON null. Errors: 22023 unknown key or no whole number, 22003 above bigint.';

CREATE FUNCTION kavach.check_action(action text)
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF action IS NULL THEN
    RAISE EXCEPTION 'action must not be NULL'
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  IF action NOT IN ('warn', 'throttle', 'block', 'revoke') THEN
    RAISE EXCEPTION 'unrecognized action "%"', action
      USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'Valid actions are warn, throttle, block and revoke.';
  END IF;
  RETURN true;
END
$$;

COMMENT ON FUNCTION kavach.check_action(text) IS
  'Raises an error unless action is one that a policy can have. Errors: 22004 NULL, 22023 unknown.';

CREATE FUNCTION kavach.check_policy(policy_id text)
RETURNS kavach.budget_policy
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  policy kavach.budget_policy;
BEGIN
  PERFORM kavach.check_id(policy_id, 'policy_id');
  SELECT * INTO policy FROM kavach.budget_policy p WHERE p.policy_id = check_policy.policy_id FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'policy "%" does not exist', policy_id
      USING ERRCODE = 'undefined_object',
            HINT = 'kavach.budget_policy lists the policies.';
  END IF;
  RETURN policy;
END
$$;

COMMENT ON FUNCTION kavach.check_policy(text) IS
  'The policy, locked against other changes. Errors: those of kavach.check_id, 42704 for an unknown policy.';

CREATE FUNCTION @extschema@.kavach_create_policy(
  agent_id   text DEFAULT NULL,
  user_id    text DEFAULT NULL,
  tenant_id  text DEFAULT NULL,
  each       text DEFAULT NULL,
  all_agents boolean DEFAULT false,
  limits     jsonb DEFAULT NULL,
  action     text DEFAULT 'block')
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  new_id text := 'pol_' || replace(gen_random_uuid()::text, '-', '');
BEGIN
  IF num_nonnulls(agent_id, user_id, tenant_id, each, nullif(all_agents, false)) <> 1 THEN
    RAISE EXCEPTION 'a policy needs exactly one scope'
      USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('%s were given.', num_nonnulls(agent_id, user_id, tenant_id, each, nullif(all_agents, false))),
            HINT = 'Give one of agent_id, user_id, tenant_id, each (''agent'', ''user'' or ''tenant'') or all_agents => true.';
  END IF;
  IF each NOT IN ('agent', 'user', 'tenant') THEN
    RAISE EXCEPTION 'unrecognized kind of subject "%"', each
      USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'Valid values of each are agent, user and tenant.';
  END IF;
  IF agent_id IS NOT NULL THEN
    PERFORM kavach.check_agent(agent_id);
  END IF;
  PERFORM kavach.check_id(user_id, 'user_id', required => false),
          kavach.check_id(tenant_id, 'tenant_id', required => false),
          kavach.check_action(action);

  INSERT INTO kavach.budget_policy (policy_id, scope, subject, each, action)
  VALUES (new_id,
          CASE WHEN all_agents THEN 'all'
               WHEN agent_id IS NOT NULL THEN 'agent'
               WHEN user_id IS NOT NULL THEN 'user'
               WHEN tenant_id IS NOT NULL THEN 'tenant'
               ELSE each END,
          coalesce(agent_id, user_id, tenant_id),
          each IS NOT NULL,
          action);
  PERFORM kavach.merge_limits(new_id, limits);
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_create_policy(text, text, text, text, boolean, jsonb, text) IS
'Creates a budget and returns its id (pol_...). It counts what its window already holds.
Exactly one scope: agent_id, user_id, tenant_id, each (agent, user or tenant: one limit for every one of them separately) or all_agents => true (one pool);
limits: {"max_tokens_cost_per_month": 5000}, at least one; keys max_tokens_cost_ or max_calls_ with per_hour, per_day, per_month (UTC) and max_tokens_cost_total, max_calls_total;
action: warn, throttle, block or revoke.
Errors: 22004, 22023, 22001, 22003 bad input; 42704 unknown agent.';

CREATE FUNCTION kavach.merge_limits(policy_id text, limits jsonb)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  changed boolean;
BEGIN
  DELETE FROM kavach.budget_limit l
   USING kavach.limits(limits) c
   WHERE l.policy_id = merge_limits.policy_id
     AND (l.measure, l.period) = (c.measure, c.period) AND c.amount IS NULL;
  changed := FOUND;
  DELETE FROM kavach.budget_baseline b
   WHERE b.policy_id = merge_limits.policy_id
     AND NOT EXISTS (
        SELECT FROM kavach.budget_limit l
         WHERE (l.policy_id, l.measure, l.period) = (b.policy_id, b.measure, b.period));
  INSERT INTO kavach.budget_limit AS l (policy_id, measure, period, amount)
  SELECT merge_limits.policy_id, c.measure, c.period, c.amount
    FROM kavach.limits(limits) c
   WHERE c.amount IS NOT NULL
  ON CONFLICT ON CONSTRAINT budget_limit_pkey DO UPDATE
     SET amount = excluded.amount WHERE l.amount <> excluded.amount;
  changed := changed OR FOUND;
  IF NOT EXISTS (SELECT FROM kavach.budget_limit l WHERE l.policy_id = merge_limits.policy_id) THEN
    RAISE EXCEPTION 'a policy needs at least one limit'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give limits => ''{"max_tokens_cost_per_month": 5000}'', or drop the policy with kavach_drop_policy().';
  END IF;
  RETURN changed;
END
$$;

COMMENT ON FUNCTION kavach.merge_limits(text, jsonb) IS
  'Merges limits into those of a policy: true if something changed. Errors: those of kavach.limits, 22023 if none is left.';

CREATE FUNCTION @extschema@.kavach_update_policy(
  policy_id text,
  limits    jsonb DEFAULT NULL,
  action    text DEFAULT NULL,
  enabled   boolean DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  policy kavach.budget_policy := kavach.check_policy(policy_id);
  changed boolean := false;
BEGIN
  IF action IS NOT NULL THEN
    PERFORM kavach.check_action(action);
  END IF;
  IF limits IS NOT NULL THEN
    changed := kavach.merge_limits(policy_id, limits);
  END IF;
  UPDATE kavach.budget_policy p
     SET action = coalesce(kavach_update_policy.action, p.action),
         enabled = coalesce(kavach_update_policy.enabled, p.enabled)
   WHERE p.policy_id = policy.policy_id
     AND (p.action, p.enabled) IS DISTINCT FROM
         (coalesce(kavach_update_policy.action, p.action), coalesce(kavach_update_policy.enabled, p.enabled));
  RETURN changed OR FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_update_policy(text, jsonb, text, boolean) IS
'Changes a budget: true if something changed. Whatever is NULL stays.
limits: merged into the present ones, a JSON null removes one; action: warn, throttle, block or revoke; enabled: false lets everything pass.
Errors: 22004, 22023, 22001, 22003 bad input, or no limit would be left; 42704 unknown policy.';

CREATE FUNCTION @extschema@.kavach_drop_policy(policy_id text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_id(kavach_drop_policy.policy_id, 'policy_id');
  DELETE FROM kavach.budget_policy p WHERE p.policy_id = kavach_drop_policy.policy_id;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  DELETE FROM kavach.budget_limit l WHERE l.policy_id = kavach_drop_policy.policy_id;
  DELETE FROM kavach.budget_baseline b WHERE b.policy_id = kavach_drop_policy.policy_id;
  RETURN true;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_drop_policy(text) IS
'Drops a budget with its limits: true if it was there. Usage is untouched.
Errors: 22004, 22023, 22001 bad input.';

CREATE FUNCTION @extschema@.kavach_reset_policy(policy_id text, subject text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  policy kavach.budget_policy := kavach.check_policy(policy_id);
BEGIN
  IF policy.each AND subject IS NULL THEN
    RAISE EXCEPTION 'policy "%" is one limit for each %: name the subject to reset', policy_id, policy.scope
      USING ERRCODE = 'invalid_parameter_value',
            HINT = format('Write kavach_reset_policy(%L, ''the %s''''s id'').', policy_id, policy.scope);
  END IF;
  IF NOT policy.each AND subject IS NOT NULL AND subject IS DISTINCT FROM policy.subject THEN
    RAISE EXCEPTION 'policy "%" has no subject "%"', policy_id, subject
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave subject out: only an each policy needs it.';
  END IF;
  PERFORM kavach.check_id(subject, CASE WHEN policy.scope = 'user' THEN 'user_id' ELSE 'subject' END, required => false);

  INSERT INTO kavach.budget_baseline AS b (policy_id, measure, period, subject, period_start, usage)
  SELECT l.policy_id, l.measure, l.period, coalesce(policy.subject, kavach_reset_policy.subject),
         u.period_start, CASE l.measure WHEN 'tokens' THEN u.tokens ELSE u.calls END
    FROM kavach.budget_limit l,
         kavach.current_usage(policy.scope, coalesce(policy.subject, kavach_reset_policy.subject), l.period, committed => true) u
   WHERE l.policy_id = policy.policy_id
  ON CONFLICT ON CONSTRAINT budget_baseline_key DO UPDATE
     SET period_start = excluded.period_start, usage = excluded.usage
   WHERE (b.period_start, b.usage) IS DISTINCT FROM (excluded.period_start, excluded.usage);
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_reset_policy(text, text) IS
'Forgives what a budget''s current windows hold, so that it starts anew: true if something changed. Usage and bills are untouched, later windows too.
subject: which agent, user or tenant, required for an each policy.
Errors: 22004, 22023, 22001 bad input; 22003 overflow; 42704 unknown policy.';

CREATE VIEW kavach.budget_status AS
WITH clock AS (
  SELECT kavach.clock_now() AT TIME ZONE 'UTC' AS utc
), win AS (
  SELECT period,
         date_trunc(period, utc) AT TIME ZONE 'UTC' AS period_start,
         (date_trunc(period, utc) + ('1 ' || period)::interval) AT TIME ZONE 'UTC' AS period_end
    FROM clock, unnest(ARRAY['hour', 'day', 'month']) AS period
   UNION ALL
  SELECT 'total', '-infinity', NULL
), usage AS MATERIALIZED (
  -- for each policies: one pass of the ledger a period
  SELECT w.period, a.agent_id, a.user_id, a.tenant_id,
         coalesce(sum(a.tokens_cost), 0) AS tokens,
         count(*) FILTER (WHERE a.kind = 'authorize') AS calls
    FROM win w
    JOIN kavach.audit_log a ON a.ts >= w.period_start AND a.ts < coalesce(w.period_end, 'infinity')
   WHERE a.result = 'allowed'
     AND w.period IN (SELECT l.period FROM kavach.budget_limit l JOIN kavach.budget_policy p USING (policy_id) WHERE p.each)
   GROUP BY w.period, a.agent_id, a.user_id, a.tenant_id
)
SELECT p.policy_id, p.scope, s.subject, l.measure, l.period, w.period_start, w.period_end, l.amount,
       u.used, greatest(l.amount - u.used, 0) AS remaining, p.action,
       CASE WHEN NOT p.enabled THEN 'disabled' WHEN u.used >= l.amount THEN 'triggered' ELSE 'active' END AS status
  FROM kavach.budget_policy p
  JOIN kavach.budget_limit l USING (policy_id)
  JOIN win w USING (period)
 CROSS JOIN LATERAL (
    -- a named subject, or all: one row, used or not
    SELECT p.subject, (CASE l.measure WHEN 'tokens' THEN c.tokens ELSE c.calls END)::numeric AS usage
      FROM kavach.current_usage(p.scope, p.subject, l.period, committed => false) c
     WHERE NOT p.each
     UNION ALL
    -- each of them: a row for whoever used something in the window
    SELECT x.subject, sum(CASE l.measure WHEN 'tokens' THEN n.tokens ELSE n.calls END)
      FROM usage n
     CROSS JOIN LATERAL (
        SELECT CASE p.scope WHEN 'agent' THEN n.agent_id WHEN 'user' THEN n.user_id ELSE n.tenant_id END AS subject) x
     WHERE p.each AND n.period = l.period AND x.subject IS NOT NULL
     GROUP BY x.subject) s
  LEFT JOIN kavach.budget_baseline b
    ON (b.policy_id, b.measure, b.period, b.period_start) = (p.policy_id, l.measure, l.period, w.period_start)
   AND b.subject IS NOT DISTINCT FROM s.subject
 CROSS JOIN LATERAL (
    SELECT CASE WHEN b.usage IS NULL THEN s.usage ELSE greatest(s.usage - b.usage, 0) END AS used) u
 WHERE NOT (p.each AND EXISTS (
    -- it yields to an enabled policy that names the subject
    SELECT FROM kavach.budget_policy n
      JOIN kavach.budget_limit nl USING (policy_id)
     WHERE n.enabled AND NOT n.each AND n.scope = p.scope AND n.subject = s.subject
       AND (nl.measure, nl.period) = (l.measure, l.period)
       AND (n.action = 'warn') = (p.action = 'warn')));

COMMENT ON VIEW kavach.budget_status IS 'How every limit stands: a row per policy, limit and subject; of an each policy, those with usage in the current window. A limit that yields to one that names its subject has no row.';
COMMENT ON COLUMN kavach.budget_status.policy_id IS 'The policy.';
COMMENT ON COLUMN kavach.budget_status.scope IS 'agent, user, tenant or all; of an each policy the kind of its subject.';
COMMENT ON COLUMN kavach.budget_status.subject IS 'The agent, user or tenant; NULL for all.';
COMMENT ON COLUMN kavach.budget_status.measure IS 'tokens or calls.';
COMMENT ON COLUMN kavach.budget_status.period IS 'hour, day, month or total.';
COMMENT ON COLUMN kavach.budget_status.period_start IS 'Start of the current window (UTC); -infinity for total.';
COMMENT ON COLUMN kavach.budget_status.period_end IS 'End of the current window, exclusive; NULL for total.';
COMMENT ON COLUMN kavach.budget_status.amount IS 'The limit.';
COMMENT ON COLUMN kavach.budget_status.used IS 'What counts against it: usage less what a reset forgave. Below 0 after refunds of earlier windows.';
COMMENT ON COLUMN kavach.budget_status.remaining IS 'What is left, never below 0.';
COMMENT ON COLUMN kavach.budget_status.action IS 'What happens when it would be passed.';
COMMENT ON COLUMN kavach.budget_status.status IS 'active, triggered (used >= amount) or disabled.';
-- authorize.sql
--   The verbs that applications call, and the correction that admins make.
--   They run with the rights of the extension's owner (src/query.c).

CREATE FUNCTION @extschema@.kavach_authorize(
  agent_id    text,
  action      text,
  resource    text,
  tokens_cost bigint DEFAULT NULL,
  arguments   jsonb DEFAULT NULL,
  ip          inet DEFAULT NULL,
  request_id  text DEFAULT NULL,
  metadata    jsonb DEFAULT NULL,
  min_tokens  bigint DEFAULT NULL,
  OUT allowed          boolean,
  OUT code             text,
  OUT reason           text,
  OUT audit_id         uuid,
  OUT policy_id        text,
  OUT tokens_granted   bigint,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint,
  OUT retry_at         timestamptz)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_authorize';

COMMENT ON FUNCTION @extschema@.kavach_authorize(text, text, text, bigint, jsonb, inet, text, jsonb, bigint) IS
'Decides whether an agent may do something now, charges its budgets and writes the decision into the ledger. Commit before you call the model.
agent_id, action, resource: who wants to do what, required; tokens_cost: the estimate to charge, 0 to 10^15, NULL for none (then it is refused only once a budget is used up);
arguments: a JSON object for allowed_arg_patterns; ip: for ip_allowlist; metadata: a JSON object, kept;
request_id: a key that makes retries safe: the same answer again and nothing charged; min_tokens: take less, down to this.
allowed, code, reason: the outcome, the code stable; audit_id: the ledger row, for kavach_record_usage; policy_id: the budget that decided;
tokens_granted: what was charged; tokens_remaining, calls_remaining: left under the tightest limit, NULL where none applies or none was looked at; retry_at: when a refused call may fit.
A refusal is an answer, no error. Errors: 22004, 22023, 22001, 22003 bad input or a request_id used for another call.';

CREATE FUNCTION @extschema@.kavach_record_usage(
  agent_id    text,
  tokens_cost bigint,
  audit_id    uuid DEFAULT NULL,
  request_id  text DEFAULT NULL,
  metadata    jsonb DEFAULT NULL,
  OUT usage_id         uuid,
  OUT tokens_charged   bigint,
  OUT code             text,
  OUT policy_id        text,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_record_usage';

COMMENT ON FUNCTION @extschema@.kavach_record_usage(text, bigint, uuid, text, jsonb) IS
'Records what a call really spent, after the call. What is spent is recorded, past a limit and for a revoked agent too.
tokens_cost: the actual figure, 0 to 10^15; 0 releases an estimate;
audit_id: the authorization that this settles: the difference is charged to its user and tenant; request_id: likewise by the request_id that it was made with, else a key that makes retries safe;
metadata: a JSON object, kept.
usage_id: the ledger row; tokens_charged: what it charges, negative for a refund; code: recorded, or over_budget where a budget is used up now, policy_id naming it; tokens_remaining, calls_remaining: as for kavach_authorize.
Errors: 22004, 22023, 22001, 22003 bad input, an audit_id that is unknown, refused or another agent''s, or a settlement repeated with another figure; 42704 unknown agent.';

CREATE FUNCTION @extschema@.kavach_check_budget(
  agent_id    text,
  tokens_cost bigint DEFAULT NULL,
  OUT allowed          boolean,
  OUT code             text,
  OUT reason           text,
  OUT policy_id        text,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint,
  OUT retry_at         timestamptz)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_check_budget';

COMMENT ON FUNCTION @extschema@.kavach_check_budget(text, bigint) IS
'Tells whether a call of this agent would fit its budgets now. It advises: nothing is charged, written or locked, and only kavach_authorize decides.
tokens_cost: 0 to 10^15, NULL for a call without cost. The answers are as for kavach_authorize, as things stand.
Errors: 22004, 22023, 22001, 22003 bad input.';

CREATE FUNCTION @extschema@.kavach_adjust(agent_id text, tokens bigint, reason text)
RETURNS uuid
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_adjust';

COMMENT ON FUNCTION @extschema@.kavach_adjust(text, bigint, text) IS
'Corrects the bill of an agent''s present user and tenant with a ledger row of kind adjustment, and returns its id.
tokens: a charge, or negative a credit, at most 10^15; it counts in the current windows; reason: required, kept.
Errors: 22004, 22023, 22001, 22003 bad input; 42704 unknown agent.';
-- report.sql
--   Who spent what: reports over the ledger.
--
-- Plain SQL functions with the caller's rights over views with the owner's:
-- the planner inlines them, so that they stream, prune months, and take the
-- caller's own WHERE and LIMIT.  So no SET, STRICT or SECURITY DEFINER here,
-- and bounds as ts >= lower AND ts < upper: until is exclusive everywhere.

CREATE FUNCTION @extschema@.kavach_query_audit(
  agent_id  text DEFAULT NULL,
  user_id   text DEFAULT NULL,
  tenant_id text DEFAULT NULL,
  since     timestamptz DEFAULT NULL,
  until     timestamptz DEFAULT NULL,
  actions   text[] DEFAULT NULL,
  result    text DEFAULT NULL,
  max_rows  int DEFAULT NULL,
  before    uuid DEFAULT NULL)
RETURNS SETOF kavach.ledger
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.*
    FROM kavach.ledger l
   WHERE l.ts >= kavach.range_start(kavach_query_audit.since, kavach_query_audit.until)
     AND l.ts < coalesce(kavach_query_audit.until, 'infinity')
     AND l.ts < coalesce(kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms', 'infinity')
     AND (kavach_query_audit.before IS NULL OR l.id < kavach_query_audit.before)
     AND (kavach_query_audit.agent_id IS NULL OR l.agent_id = kavach_query_audit.agent_id)
     AND (kavach_query_audit.user_id IS NULL OR l.user_id = kavach_query_audit.user_id)
     AND (kavach_query_audit.tenant_id IS NULL OR l.tenant_id = kavach_query_audit.tenant_id)
     AND (kavach_query_audit.actions IS NULL OR l.action = ANY (kavach_query_audit.actions))
     AND (kavach_query_audit.result IS NULL OR l.result = kavach_query_audit.result)
   ORDER BY l.id DESC
   LIMIT kavach_query_audit.max_rows;
END;

COMMENT ON FUNCTION @extschema@.kavach_query_audit(text, text, text, timestamptz, timestamptz, text[], text, int, uuid) IS
'Ledger rows, newest first. Every argument narrows, NULL does not: agent_id, user_id, tenant_id; since (inclusive) and until (exclusive);
actions: any of these; result: allowed, denied or rate_limited; max_rows: at most so many; before: rows older than this id, to page.
Errors: 22023 where since is after until; 2201W negative max_rows.';

CREATE VIEW kavach.usage_by_agent AS
SELECT agent_id,
       count(*) FILTER (WHERE kind = 'authorize') AS calls,
       count(*) FILTER (WHERE kind = 'authorize' AND result <> 'allowed') AS denied,
       count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed' AND tokens_requested IS NULL) AS calls_without_cost,
       coalesce(sum(tokens_cost), 0) AS tokens_cost
  FROM kavach.audit_log
 GROUP BY agent_id;

COMMENT ON VIEW kavach.usage_by_agent IS 'Usage of every agent, over all time. For a range use kavach_cost_by_agent.';
COMMENT ON COLUMN kavach.usage_by_agent.agent_id IS 'The agent.';

CREATE VIEW kavach.usage_by_user AS
SELECT user_id,
       count(*) FILTER (WHERE kind = 'authorize') AS calls,
       count(*) FILTER (WHERE kind = 'authorize' AND result <> 'allowed') AS denied,
       count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed' AND tokens_requested IS NULL) AS calls_without_cost,
       coalesce(sum(tokens_cost), 0) AS tokens_cost
  FROM kavach.audit_log
 GROUP BY user_id;

COMMENT ON VIEW kavach.usage_by_user IS 'Usage of every user, over all time. For a range use kavach_cost_by_user.';
COMMENT ON COLUMN kavach.usage_by_user.user_id IS 'The user; NULL: refused calls of unknown agents.';

CREATE VIEW kavach.usage_by_day AS
SELECT (ts AT TIME ZONE 'UTC')::date AS day,
       count(*) FILTER (WHERE kind = 'authorize') AS calls,
       count(*) FILTER (WHERE kind = 'authorize' AND result <> 'allowed') AS denied,
       count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed' AND tokens_requested IS NULL) AS calls_without_cost,
       coalesce(sum(tokens_cost), 0) AS tokens_cost
  FROM kavach.audit_log
 GROUP BY 1;

COMMENT ON VIEW kavach.usage_by_day IS 'Usage of every UTC day that has ledger rows. For a range or one agent use kavach_cost_by_day.';
COMMENT ON COLUMN kavach.usage_by_day.day IS 'The UTC day.';

DO $$
DECLARE
  view text;
BEGIN
  FOREACH view IN ARRAY ARRAY['usage_by_agent', 'usage_by_user', 'usage_by_day'] LOOP
    EXECUTE format('COMMENT ON COLUMN kavach.%I.calls IS %L', view, 'Authorize decisions.');
    EXECUTE format('COMMENT ON COLUMN kavach.%I.denied IS %L', view, 'Those refused.');
    EXECUTE format('COMMENT ON COLUMN kavach.%I.calls_without_cost IS %L', view, 'Those admitted that gave no cost.');
    EXECUTE format('COMMENT ON COLUMN kavach.%I.tokens_cost IS %L', view, 'sum(tokens_cost) over the ledger: the bill.');
  END LOOP;
END
$$;

CREATE FUNCTION @extschema@.kavach_cost_by_agent(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (agent_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.agent_id,
         count(*) FILTER (WHERE l.kind = 'authorize'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result <> 'allowed'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result = 'allowed' AND l.tokens_requested IS NULL),
         coalesce(sum(l.tokens_cost), 0)
    FROM kavach.ledger l
   WHERE l.ts >= kavach.range_start(kavach_cost_by_agent.since, kavach_cost_by_agent.until)
     AND l.ts < coalesce(kavach_cost_by_agent.until, 'infinity')
   GROUP BY l.agent_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_agent(timestamptz, timestamptz) IS
'Usage by agent from since (inclusive) to until (exclusive); NULL for no bound.
calls: authorize decisions; denied: those refused; calls_without_cost: those admitted that gave no cost; tokens_cost: the sum over the ledger.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_cost_by_user(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.user_id,
         count(*) FILTER (WHERE l.kind = 'authorize'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result <> 'allowed'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result = 'allowed' AND l.tokens_requested IS NULL),
         coalesce(sum(l.tokens_cost), 0)
    FROM kavach.ledger l
   WHERE l.ts >= kavach.range_start(kavach_cost_by_user.since, kavach_cost_by_user.until)
     AND l.ts < coalesce(kavach_cost_by_user.until, 'infinity')
   GROUP BY l.user_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_user(timestamptz, timestamptz) IS
'Usage by user, one row each, from since (inclusive) to until (exclusive); NULL for no bound. The columns are those of kavach_cost_by_agent; NULL: refused calls of unknown agents.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_cost_by_day(
  agent_id text,
  since    timestamptz,
  until    timestamptz)
RETURNS TABLE (day date, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT (l.ts AT TIME ZONE 'UTC')::date,
         count(*) FILTER (WHERE l.kind = 'authorize'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result <> 'allowed'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result = 'allowed' AND l.tokens_requested IS NULL),
         coalesce(sum(l.tokens_cost), 0)
    FROM kavach.ledger l
   WHERE l.ts >= kavach.range_start(kavach_cost_by_day.since, kavach_cost_by_day.until)
     AND l.ts < coalesce(kavach_cost_by_day.until, 'infinity')
     AND (kavach_cost_by_day.agent_id IS NULL OR l.agent_id = kavach_cost_by_day.agent_id)
   GROUP BY 1;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_day(text, timestamptz, timestamptz) IS
'Usage by UTC day, of one agent or of all (NULL), from since (inclusive) to until (exclusive); NULL for no bound. Days without ledger rows are absent. The other columns are those of kavach_cost_by_agent.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_billing_report(year int, month int)
RETURNS TABLE (tenant_id text, user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.tenant_id, l.user_id,
         count(*) FILTER (WHERE l.kind = 'authorize'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result <> 'allowed'),
         count(*) FILTER (WHERE l.kind = 'authorize' AND l.result = 'allowed' AND l.tokens_requested IS NULL),
         coalesce(sum(l.tokens_cost), 0)
    FROM kavach.ledger l
   WHERE l.ts >= kavach.month_start(kavach_billing_report.year, kavach_billing_report.month)
     AND l.ts < kavach.month_end(kavach_billing_report.year, kavach_billing_report.month)
   GROUP BY l.tenant_id, l.user_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_billing_report(int, int) IS
'The bill of a UTC month: usage by tenant and user. The other columns are those of kavach_cost_by_agent; NULL, NULL: refused calls of unknown agents.
Errors: 22004, 22023 no such month.';
-- export.sql
--   The ledger for other systems, through COPY (SELECT ...) TO ....
--   Inlined as the reports are: rows stream, whatever their number.

CREATE FUNCTION @extschema@.kavach_export(
  since timestamptz DEFAULT NULL,
  until timestamptz DEFAULT NULL)
RETURNS TABLE (
  id uuid, ts text, batch bigint, kind text, agent_id text, user_id text, tenant_id text,
  action text, resource text, arguments jsonb, ip inet, result text, code text, reason text,
  permission_id bigint, policy_id text, tokens_requested bigint, min_tokens bigint, tokens_released bigint,
  tokens_cost bigint, settles uuid, request_id text, provider text, model text,
  tokens_input bigint, tokens_output bigint, tokens_cache_read bigint, tokens_cache_write bigint,
  cost numeric, metadata jsonb)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.id, to_char(l.ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), l.batch, l.kind,
         l.agent_id, l.user_id, l.tenant_id, l.action, l.resource, l.arguments, l.ip, l.result, l.code, l.reason,
         l.permission_id, l.policy_id, l.tokens_requested, l.min_tokens, l.tokens_released,
         l.tokens_cost, l.settles, l.request_id, l.provider, l.model,
         l.tokens_input, l.tokens_output, l.tokens_cache_read, l.tokens_cache_write,
         l.cost, l.metadata
    FROM kavach.ledger l
   WHERE l.ts >= kavach.range_start(kavach_export.since, kavach_export.until)
     AND l.ts < coalesce(kavach_export.until, 'infinity');
END;

COMMENT ON FUNCTION @extschema@.kavach_export(timestamptz, timestamptz) IS
'The ledger''s rows from since (inclusive) to until (exclusive) for COPY (SELECT * FROM kavach_export(...)) TO ... (FORMAT csv, HEADER); NULL for no bound.
The columns are those of kavach.audit_log; ts is ISO 8601 UTC text whatever TimeZone and DateStyle. Rows come in no particular order: add ORDER BY id where it matters.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_export_json(
  since timestamptz DEFAULT NULL,
  until timestamptz DEFAULT NULL)
RETURNS SETOF jsonb
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT to_jsonb(e) FROM @extschema@.kavach_export(kavach_export_json.since, kavach_export_json.until) e;
END;

COMMENT ON FUNCTION @extschema@.kavach_export_json(timestamptz, timestamptz) IS
'As kavach_export, one JSON object a row. COPY''s text format doubles backslashes; what keeps JSON lines whole is
COPY (SELECT * FROM kavach_export_json(...)) TO ... (FORMAT csv, QUOTE E''\x01'', DELIMITER E''\x02''), as JSON has neither of the two.
Errors: 22023 where since is after until.';
-- role.sql
--   Who may call what.  Nothing is PUBLIC; kavach_grant_role gives.
--
-- Views read with their owner's rights.  None is a security_barrier, as none
-- keeps rows from those who may read it: a reader has the whole ledger.

CREATE FUNCTION @extschema@.kavach_grant_role(role regrole, access text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  app CONSTANT text[] := ARRAY['kavach_authorize', 'kavach_record_usage', 'kavach_check_budget'];
  reader CONSTANT text[] := ARRAY[
    'kavach_query_audit', 'kavach_cost_by_agent', 'kavach_cost_by_user', 'kavach_cost_by_day',
    'kavach_billing_report', 'kavach_export', 'kavach_export_json',
    'range_start', 'month_start', 'month_end', 'uuid7_ts', 'clock_now',
    'current_usage', 'read_counters', 'read_counter_stats'];
  admin CONSTANT text[] := app || reader || ARRAY[
    'kavach_create_agent', 'kavach_update_agent', 'kavach_revoke_agent', 'kavach_restore_agent',
    'kavach_grant_permission', 'kavach_revoke_permission',
    'kavach_create_policy', 'kavach_update_policy', 'kavach_drop_policy', 'kavach_reset_policy',
    'kavach_adjust', 'kavach_reload_counters'];
  functions text[];
  changed boolean := false;
  object record;
BEGIN
  IF role IS NULL OR access IS NULL THEN
    RAISE EXCEPTION '% must not be NULL', CASE WHEN role IS NULL THEN 'role' ELSE 'access' END
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = role) THEN
    RAISE EXCEPTION 'role "%" does not exist', role
      USING ERRCODE = 'undefined_object';
  END IF;
  functions := CASE access WHEN 'app' THEN app WHEN 'reader' THEN reader WHEN 'admin' THEN admin END;
  IF functions IS NULL THEN
    RAISE EXCEPTION 'unrecognized access "%"', access
      USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'Valid kinds of access are app, reader and admin.';
  END IF;

  -- Two GRANT on an object at once end in an internal error of the server's.
  LOCK TABLE kavach.agent IN SHARE UPDATE EXCLUSIVE MODE;
  FOR object IN
    -- the schemas, then the functions, then what may be read
    SELECT format('USAGE ON SCHEMA %I', n.nspname) AS privilege,
           has_schema_privilege(role, n.oid, 'USAGE') AS held
      FROM pg_namespace n
     WHERE n.oid = '@extschema@'::regnamespace OR (n.nspname = 'kavach' AND access <> 'app')
     UNION ALL
    SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure),
           has_function_privilege(role, p.oid, 'EXECUTE')
      FROM pg_extension e
      JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
      JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
     WHERE e.extname = 'kavach' AND p.proname = ANY (functions)
     UNION ALL
    SELECT format('SELECT ON %s', c.oid::regclass),
           has_table_privilege(role, c.oid, 'SELECT')
      FROM pg_extension e
      JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
      JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
     WHERE e.extname = 'kavach'
       AND ((c.relkind = 'v' AND access <> 'app') OR (c.relkind IN ('r', 'p') AND access = 'admin'))
  LOOP
    CONTINUE WHEN object.held;
    EXECUTE format('GRANT %s TO %s', object.privilege, role);
    changed := true;
  END LOOP;
  RETURN changed;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_grant_role(regrole, text) IS
'Lets a role use kavach: true if it could not do all of that yet. For the extension''s owner; REVOKE takes it back.
access: app (authorize, record usage, check a budget; reads and writes no table), reader (reports, exports and their views) or admin (both, agents, permissions, budgets and adjustments, and reading the tables).
Errors: 22004, 22023 bad input; 42704 unknown role.';

-- Nothing is PUBLIC's, nor anybody's whom default privileges name, by
-- construction: whatever this script has made.
DO $$
DECLARE
  object record;
BEGIN
  FOR object IN
    SELECT DISTINCT o.name, a.grantee
      FROM (SELECT format('FUNCTION %s', p.oid::regprocedure), coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner
              FROM pg_extension e
              JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
              JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
             WHERE e.extname = 'kavach'
             UNION ALL
            SELECT 'SCHEMA kavach', n.nspacl, n.nspowner FROM pg_namespace n WHERE n.nspname = 'kavach') AS o (name, acl, owner),
           aclexplode(o.acl) a
     WHERE a.grantee <> o.owner
  LOOP
    EXECUTE format('REVOKE ALL ON %s FROM %s', object.name,
                   CASE WHEN object.grantee = 0 THEN 'PUBLIC' ELSE object.grantee::regrole::text END);
  END LOOP;

  PERFORM kavach.make_private(c.oid)
     FROM pg_extension e
     JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
     JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
    WHERE e.extname = 'kavach' AND c.relkind IN ('r', 'p', 'v', 'S');
END
$$;
