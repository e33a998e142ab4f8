# find.pl: agents, permissions and policies are found straight by the indexes of their tables, as long as these are such
# that a SELECT would find the same; and by a statement where they are not.
#
# Which way it was is told by the locks: a statement's are kept to the end of the transaction.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('find');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION kavach; CREATE ROLE other; CREATE ROLE owner');
my $app = Session->new($node);
my $tables = q{'agent', 'permission', 'budget_policy', 'budget_limit', 'budget_baseline'};
my $made = 0;

sub change { my ($sql) = @_; return $node->safe_psql('postgres', "SET kavach.allow_alter = on; SET kavach.allow_drop = on; $sql") }

# An agent that nobody has called, of which all tables have something: of its 100 tokens a reset has forgiven 7, and its
# permission is the one with the lower id, although it was put in later.
sub make
{
	my $id = 'agt_' . ++$made;
	change(qq{
		SELECT kavach_create_agent('$id', 'user_$made', 'acme');
		INSERT INTO kavach.permission (permission_id, agent_id, resource, actions, constraints) OVERRIDING SYSTEM VALUE
		VALUES ($made * 10 + 1, '$id', '*', '{run}', '{}'), ($made * 10, '$id', 'x', '{run}', '{"ip_allowlist": ["10.0.0.0/8"]}');
		SELECT kavach_create_policy(agent_id => '$id', limits => '{"max_tokens_cost_total": 100}', policy_id => 'pol_$made');
		INSERT INTO kavach.budget_baseline (policy_id, measure, period, subject, period_start, usage) VALUES ('pol_$made', 'tokens', 'total', '$id', '-infinity', 7);
		SELECT kavach_create_policy(user_id => 'user_$made', limits => '{"max_calls_total": 9}')});
	return $id;
}

# What a call of it is told, and which tables were read by statements.
sub call
{
	my ($id, $level) = @_;
	$level //= 'READ COMMITTED';
	my $answer = $app->query(qq{BEGIN ISOLATION LEVEL $level;
		CREATE TEMP TABLE told ON COMMIT DROP AS SELECT * FROM kavach_authorize('$id', 'run', 'x', 30, ip => '10.0.0.1');
		SELECT concat_ws(' ', t.code, a.permission_id - $made * 10, t.tokens_remaining, t.calls_remaining) FROM told t LEFT JOIN kavach.audit_log a ON a.id = t.audit_id;
		SELECT 'by statement: ' || coalesce(string_agg(DISTINCT relname::text, ' ' ORDER BY relname::text), 'none') FROM pg_locks l JOIN pg_class c ON c.oid = relation
		 WHERE pid = pg_backend_pid() AND mode = 'AccessShareLock' AND relname IN ($tables); COMMIT});
	return $answer =~ s/\n/, /gr;
}

sub ok_call
{
	my ($statements, $name, $change) = @_;
	change($change) if $change;
	is(call(make()), "allowed 0 77 8, by statement: $statements", $name);
	return;
}

ok_call('none', 'as they are');

# ---- which columns and indexes ----

ok_call('none', 'more columns', join '; ', map { "ALTER TABLE kavach.$_ ADD own text DEFAULT 'own'" } qw(agent permission budget_policy budget_limit budget_baseline));
ok_call('none', 'columns of another order', q{
	ALTER EXTENSION kavach DROP VIEW kavach.agents; DROP VIEW kavach.agents; ALTER TABLE kavach.agent RENAME user_id TO gone;
	ALTER TABLE kavach.agent ADD user_id text; UPDATE kavach.agent SET user_id = gone; ALTER TABLE kavach.agent DROP gone});
ok_call('permission', 'an index less', 'DROP INDEX kavach.permission_agent_id_idx');
ok_call('permission', 'one of the other order', 'CREATE INDEX other ON kavach.permission (permission_id, agent_id)');
ok_call('permission', 'one of some rows', q{CREATE INDEX partial ON kavach.permission (agent_id) WHERE resource <> 'x'});
ok_call('permission', 'one of another kind', 'CREATE INDEX hash ON kavach.permission USING hash (agent_id)');
ok_call('permission', 'one that compares otherwise', 'CREATE INDEX pattern ON kavach.permission (agent_id text_pattern_ops)');
ok_call('permission', 'one of another collation', 'CREATE INDEX collated ON kavach.permission (agent_id COLLATE "POSIX")');
ok_call('permission', 'one of an expression', 'CREATE INDEX expression ON kavach.permission (lower(agent_id))');
ok_call('none', 'one that will do', 'CREATE INDEX own ON kavach.permission (agent_id)');
ok_call('budget_policy', 'half of what is looked for', 'DROP INDEX kavach.budget_policy_scope_idx; CREATE INDEX half ON kavach.budget_policy (scope)');
ok_call('none', 'and more', 'CREATE INDEX more ON kavach.budget_policy (scope, subject, action)');
ok_call('permission', 'another type', 'ALTER EXTENSION kavach DROP VIEW kavach.permissions; DROP VIEW kavach.permissions; ALTER TABLE kavach.permission ALTER resource TYPE varchar(100)');
ok_call('none', 'and back', 'ALTER TABLE kavach.permission ALTER resource TYPE text');
ok_call('budget_baseline', 'no index of that', 'DROP INDEX kavach.budget_baseline_subject_idx');
ok_call('none', 'and again', 'CREATE INDEX CONCURRENTLY anew ON kavach.budget_baseline (subject)');

# ---- which rows ----

# Those of a table that inherits are its rows, too.
change('CREATE TABLE heir () INHERITS (kavach.permission); CREATE INDEX ON heir (agent_id)');
my $id = make();
change("WITH moved AS (DELETE FROM ONLY kavach.permission WHERE agent_id = '$id' RETURNING *) INSERT INTO heir SELECT * FROM moved");
is(call($id), 'allowed 0 77 8, by statement: heir permission' =~ s/heir //r, 'of an heir');
ok_call('none', 'without it', 'DROP TABLE heir; ANALYZE kavach.permission');

# Row security says which they are, to an owner who is no superuser.
ok_call('agent', 'row security', 'ALTER TABLE kavach.agent ENABLE ROW LEVEL SECURITY');
change(q{CREATE POLICY own ON kavach.agent USING (agent_id <> 'agt_hidden'); ALTER TABLE kavach.agent FORCE ROW LEVEL SECURITY; SELECT kavach_create_agent('agt_hidden', 'ann')});
is($app->query(q{SELECT code FROM kavach_check_budget('agt_hidden', 0)}), 'allowed', 'which a superuser passes by');
my $owners = join '; ', map { "ALTER TABLE kavach.$_ OWNER TO owner" } qw(agent permission budget_policy budget_limit budget_baseline audit_log);
change("GRANT ALL ON SCHEMA kavach TO owner; GRANT ALL ON ALL FUNCTIONS IN SCHEMA kavach TO owner; $owners; UPDATE kavach.agent SET name = 'x' WHERE agent_id = 'agt_hidden'");
is($app->query(q{SELECT code FROM kavach_check_budget('agt_hidden', 0)}), 'agent_not_found', 'and another owner does not');
ok_call('none', 'without', 'ALTER TABLE kavach.agent DISABLE ROW LEVEL SECURITY');
is($app->query(q{SELECT code FROM kavach_check_budget('agt_hidden', 0)}), 'allowed', 'it is there');

# Whose they are is asked, where they are somebody else's.
ok_call('permission', 'of another owner', 'ALTER TABLE kavach.permission OWNER TO other; GRANT ALL ON kavach.permission TO owner');
$id = make();
change('REVOKE SELECT ON kavach.permission FROM owner');
like($app->query("SELECT code FROM kavach_check_budget('$id', 0)"), qr/42501/, 'who lets nobody read');
ok_call('none', 'of the same', 'ALTER TABLE kavach.permission OWNER TO owner');

# ---- when ----

# In the latest snapshot; serializable transactions note what they have read.
is(call(make(), 'REPEATABLE READ'), 'allowed 0 77 8, by statement: none', 'REPEATABLE READ');
$app->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$id = make();
is($app->query("SELECT code, tokens_remaining FROM kavach_check_budget('$id', 0); COMMIT"), 'allowed|100', 'of an agent who came later');
$id = make();
is($app->query(qq{BEGIN ISOLATION LEVEL SERIALIZABLE; DO \$\$ BEGIN PERFORM kavach_check_budget('$id', 0); END \$\$;
	SELECT string_agg(DISTINCT relname::text, ' ' ORDER BY relname::text) FROM pg_locks l JOIN pg_class c ON c.oid = relation
	 WHERE pid = pg_backend_pid() AND mode = 'SIReadLock' AND relname IN ($tables); COMMIT}), 'agent budget_baseline budget_limit budget_policy permission', 'SERIALIZABLE');

# What the transaction has written itself is seen, and that it is taken back.
is($app->query(q{BEGIN; SELECT FROM kavach_create_agent('agt_own', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]'); SAVEPOINT s;
	SELECT FROM kavach_revoke_agent('agt_own'); SELECT code FROM kavach_check_budget('agt_own', 0, 'run', 'x'); ROLLBACK TO s;
	SELECT code FROM kavach_check_budget('agt_own', 0, 'run', 'x'); ROLLBACK; SELECT code FROM kavach_check_budget('agt_own', 0)}) =~ s/\n+/ /gr, ' agent_revoked allowed agent_not_found' =~ s/^ //r, 'of the same transaction');

# ---- other tables of those names ----

$node->safe_psql('postgres', 'SET kavach.allow_drop = on; DROP EXTENSION kavach; CREATE EXTENSION kavach');
ok_call('none', 'those of an extension that was created anew');
is($app->query(q{SELECT code FROM kavach_check_budget('agt_hidden', 0)}), 'agent_not_found', 'have what is in them');

$app->quit;
$node->stop;
done_testing();
