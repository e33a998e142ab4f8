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
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM kavach.check_id(agent_id, 'agent_id');
  -- kept until the end of the transaction: what is granted meanwhile must not outlive the agent
  PERFORM FROM kavach.agent a WHERE a.agent_id = check_agent.agent_id FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'agent "%" does not exist', agent_id
      USING ERRCODE = 'undefined_object',
            HINT = 'Create it with kavach_create_agent().';
  END IF;
  RETURN true;
END
$$;

COMMENT ON FUNCTION kavach.check_agent(text) IS
  'Raises an error unless the agent exists, and locks it against changes and removal. Errors: those of kavach.check_id, 42704 for an unknown agent.';

-- What names an agent goes with it, or the next one of that id would inherit permissions and budgets. Also where
-- rows are deleted by hand, and on a subscriber, whose own deletes find nothing left.
CREATE FUNCTION kavach.forget_agent(agent_id text)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_forget_agent';

COMMENT ON FUNCTION kavach.forget_agent(text) IS
  'Removes the permissions of an agent, the budgets that name it, and what was forgiven to it.';

CREATE FUNCTION kavach.agent_gone()
RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF TG_RELID <> 'kavach.agent'::regclass THEN
    RAISE EXCEPTION 'kavach.agent_gone() must be called for kavach.agent'
      USING ERRCODE = 'trigger_protocol_violated';
  END IF;
  IF TG_OP = 'TRUNCATE' THEN
    PERFORM kavach.forget_agent(o.agent_id)
       FROM (SELECT p.agent_id FROM kavach.permission p
              UNION SELECT kavach.of_scope(p.scope, p.subject, NULL, NULL) FROM kavach.budget_policy p
              UNION SELECT kavach.of_scope(p.scope, b.subject, NULL, NULL)
                      FROM kavach.budget_baseline b JOIN kavach.budget_policy p USING (policy_id)) AS o (agent_id)
      WHERE o.agent_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM kavach.agent a WHERE a.agent_id = o.agent_id);
  ELSE
    PERFORM kavach.forget_agent(OLD.agent_id);
  END IF;
  RETURN NULL;
END
$$;

COMMENT ON FUNCTION kavach.agent_gone() IS
  'Trigger: permissions, and budgets that name the agent, go with it; the ledger stays.';

CREATE TRIGGER forget_agent AFTER DELETE ON kavach.agent
  FOR EACH ROW EXECUTE FUNCTION kavach.agent_gone();
CREATE TRIGGER forget_renamed_agent AFTER UPDATE OF agent_id ON kavach.agent
  FOR EACH ROW WHEN (OLD.agent_id <> NEW.agent_id) EXECUTE FUNCTION kavach.agent_gone();
CREATE TRIGGER forget_all_agents AFTER TRUNCATE ON kavach.agent
  FOR EACH STATEMENT EXECUTE FUNCTION kavach.agent_gone();
ALTER TABLE kavach.agent ENABLE ALWAYS TRIGGER forget_agent;
ALTER TABLE kavach.agent ENABLE ALWAYS TRIGGER forget_renamed_agent;
ALTER TABLE kavach.agent ENABLE ALWAYS TRIGGER forget_all_agents;
COMMENT ON TRIGGER forget_agent ON kavach.agent IS 'Permissions, and budgets that name the agent, go with it.';
COMMENT ON TRIGGER forget_renamed_agent ON kavach.agent IS 'They stay with no other one either.';
COMMENT ON TRIGGER forget_all_agents ON kavach.agent IS 'And with all of them, all go.';

CREATE FUNCTION @extschema@.kavach_create_agent(
  agent_id    text DEFAULT NULL,
  user_id     text DEFAULT NULL,
  tenant_id   text DEFAULT NULL,
  name        text DEFAULT NULL,
  permissions jsonb DEFAULT NULL,
  expires_at  timestamptz DEFAULT NULL,
  metadata    jsonb DEFAULT '{}',
  replace     boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  new_id text := coalesce(agent_id, 'agt_' || pg_catalog.replace(gen_random_uuid()::text, '-', ''));
  created boolean;
  changed boolean := false;
BEGIN
  PERFORM kavach.check_id(new_id, 'agent_id'),
          kavach.check_id(user_id, 'user_id'),
          kavach.check_id(tenant_id, 'tenant_id', required => false),
          kavach.check_id(name, 'name', required => false);
  IF replace AND agent_id IS NULL THEN
    RAISE EXCEPTION 'replace needs an agent_id'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give the id of the agent to replace, as it would be another one each time.';
  END IF;

  LOOP
    INSERT INTO kavach.agent (agent_id, user_id, tenant_id, name, expires_at, metadata)
    VALUES (new_id, user_id, tenant_id, name, expires_at, kavach.check_object(metadata, 'metadata'))
    ON CONFLICT ON CONSTRAINT agent_pkey DO NOTHING;
    created := FOUND;
    EXIT WHEN created;
    IF NOT coalesce(replace, false) THEN
      RAISE EXCEPTION 'agent "%" already exists', new_id
        USING ERRCODE = 'unique_violation',
              HINT = 'Change it with kavach_update_agent() or replace => true, or leave agent_id out to have one made.';
    END IF;
    PERFORM FROM kavach.agent a WHERE a.agent_id = new_id FOR NO KEY UPDATE;
    EXIT WHEN FOUND;
    -- dropped meanwhile: it is to be created after all
  END LOOP;

  IF created THEN
    PERFORM kavach.forget_agent(new_id);
  ELSE
    UPDATE kavach.agent a
       SET user_id = kavach_create_agent.user_id, tenant_id = kavach_create_agent.tenant_id, name = kavach_create_agent.name,
           expires_at = kavach_create_agent.expires_at, metadata = kavach.check_object(kavach_create_agent.metadata, 'metadata')
     WHERE a.agent_id = new_id
       AND (a.user_id, a.tenant_id, a.name, a.expires_at, a.metadata) IS DISTINCT FROM
           (kavach_create_agent.user_id, kavach_create_agent.tenant_id, kavach_create_agent.name,
            kavach_create_agent.expires_at, kavach.check_object(kavach_create_agent.metadata, 'metadata'));
    changed := FOUND;
  END IF;

  IF permissions IS NOT NULL THEN
    changed := kavach.set_permissions(new_id, permissions) OR changed;
  END IF;
  IF replace THEN
    RAISE NOTICE 'agent "%" %', new_id, CASE WHEN created THEN 'created' WHEN changed THEN 'replaced' ELSE 'unchanged' END;
  END IF;
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_create_agent(text, text, text, text, jsonb, timestamptz, jsonb, boolean) IS
'Creates an agent and returns its id.
agent_id: NULL makes one (agt_...); user_id: required, its owner; tenant_id, name: optional;
permissions: [{"resource": ..., "actions": [...], "constraints": {...}}], as for kavach_grant_permission;
expires_at: from then on its calls are refused; metadata: a JSON object;
replace: an agent of that id that is there gets these values, and exactly these permissions, where they are given: those that stay keep their id, and a revoked agent stays revoked. A NOTICE says whether it was created, replaced or unchanged.
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

CREATE FUNCTION @extschema@.kavach_drop_agent(agent_id text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_id(kavach_drop_agent.agent_id, 'agent_id');
  DELETE FROM kavach.agent a WHERE a.agent_id = kavach_drop_agent.agent_id;
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_drop_agent(text) IS
'Drops an agent with its permissions and the budgets that name it: true if it was there. Later calls are refused with agent_not_found.
The ledger stays, bills too, and what the agent has left open can still be settled. An agent created later with this id starts without permissions and budgets of its own; what the ledger holds of the id counts as its usage.
Errors: 22004, 22023, 22001 bad input.';
