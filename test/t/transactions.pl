# transactions.pl: charges follow the transaction, however it ends.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('transactions');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nmax_prepared_transactions = 5\nwal_writer_delay = 10s");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]'),
	       kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_total": 1000000}');
	CREATE FUNCTION call(tokens bigint) RETURNS text LANGUAGE sql BEGIN ATOMIC
	  SELECT code || ' ' || tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => tokens); END;
	CREATE VIEW standing AS
	  SELECT used AS ledger, c.tokens_used AS counted, c.tokens_pending AS pending, c.pins
	    FROM (SELECT coalesce(sum(tokens_cost), 0) AS used FROM kavach.audit_log WHERE agent_id = 'agt_a') AS l,
	         kavach.counters c WHERE (scope, subject, period) = ('agent', 'agt_a', 'total');
});

my $one = Session->new($node);
my $two = Session->new($node);
my $used = 0;

# What the ledger and the counter say, seen from outside; charged: what has been added since the last time.
sub adds
{
	my ($charged, $name) = @_;
	$used += $charged;
	is($two->query('SELECT * FROM standing'), "$used|$used|0|0", $name);
}

sub left { return 1000000 - $used - shift }

$one->query('SELECT call(1)');
adds(1, 'autocommit');
$one->query('BEGIN; SELECT call(2)');
is($two->query('SELECT counted, pending, pins > 0 FROM standing'), '1|2|t', 'an open charge is pending, and its counter pinned');
$one->query('COMMIT');
adds(2, 'commit');
$one->query('BEGIN; SELECT call(4); ROLLBACK');
adds(0, 'rollback');

# ---- savepoints ----

is($one->query('BEGIN; SELECT call(1); SAVEPOINT a; SELECT call(2); ROLLBACK TO a; SELECT call(4); RELEASE a; SELECT call(8)'),
	join("\n", map { 'allowed ' . left($_) } 1, 3, 5, 13), 'a savepoint rolled back to gives its tokens back at once');
$one->query('COMMIT');
adds(13, 'and the rest is committed');
$one->query('BEGIN; SAVEPOINT a; SELECT call(1); SAVEPOINT b; SELECT call(2); SAVEPOINT c; SELECT call(4); RELEASE c; ROLLBACK TO b; SELECT call(8); RELEASE a; SELECT call(16); COMMIT');
adds(25, 'nested: released inside of one that is rolled back');
$one->query('BEGIN; SAVEPOINT a; SELECT call(1); SAVEPOINT a; SELECT call(2); ROLLBACK TO a; ROLLBACK TO a; SELECT call(4); RELEASE a; ROLLBACK TO a; SELECT call(8); COMMIT');
adds(8, 'the same name twice');
$one->query('BEGIN; SELECT call(1); SAVEPOINT a; SELECT call(2); SAVEPOINT b; SELECT 1 / 0; ROLLBACK TO a; SELECT call(4); COMMIT');
adds(5, 'an error, then back to the outer savepoint');
$one->query('BEGIN; SAVEPOINT a; SELECT call(1); RELEASE a; ROLLBACK');
adds(0, 'released, then all rolled back');
$one->query('BEGIN; ' . join('; ', map { "SAVEPOINT s$_; SELECT call(1)" } 1 .. 70) . '; ROLLBACK TO s36; ' . join('; ', map { "RELEASE s$_" } reverse 1 .. 36) . '; COMMIT');
adds(35, 'seventy levels deep, half of them rolled back');
my $id = $one->query(q{SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 64)});
$used += 64;
is($one->query(qq{BEGIN; SAVEPOINT a; SELECT tokens_remaining FROM kavach_record_usage('agt_a', 4, '$id'); ROLLBACK TO a; SELECT call(1)}),
	left(-60) . "\nallowed " . left(1), 'a refund counts at once, and no longer once it is rolled back to');
$one->query(qq{SELECT kavach_record_usage('agt_a', 4, '$id')});
is($two->query('SELECT counted - ledger, pending FROM standing'), '0|1', 'a refund is not in the shared counter before it is committed');
$one->query('COMMIT');
adds(1 - 60, 'and is after');

# ---- PL/pgSQL ----

is($one->query(q{DO $$ BEGIN
	PERFORM call(1);
	BEGIN PERFORM call(2); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN PERFORM call(4); END;
	FOR n IN 1 .. 20 LOOP
	  BEGIN PERFORM call(1); IF n % 2 = 0 THEN PERFORM 1 / 0; END IF; EXCEPTION WHEN division_by_zero THEN NULL; END;
	END LOOP; END $$}), '', 'exceptions in a block');
adds(15, 'give back what their blocks charged');
$node->safe_psql('postgres', q{
	CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN
	  PERFORM call(1); COMMIT; PERFORM call(2); ROLLBACK; PERFORM call(4); COMMIT AND CHAIN; PERFORM call(8);
	  FOR r IN SELECT n FROM generate_series(1, 5) n LOOP PERFORM call(16); IF r.n % 2 = 0 THEN ROLLBACK; ELSE COMMIT; END IF; END LOOP; END $$});
is($one->query('CALL commits()'), '', 'a procedure that commits inside');
adds(1 + 4 + 8 + 3 * 16, 'charges what it committed');

# ---- cursors ----

$one->query('BEGIN; DECLARE c CURSOR FOR SELECT call(1) FROM generate_series(1, 10); FETCH 3 FROM c; SAVEPOINT a; FETCH 2 FROM c; ROLLBACK TO a; COMMIT');
adds(3, 'a cursor charges what was fetched from it');
$one->query('BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT call(1) FROM generate_series(1, 10); COMMIT; FETCH 2 FROM h; CLOSE h');
adds(10, 'a held one is run to its end at the commit');

# ---- deferred triggers, many calls, sub-selects ----

$node->safe_psql('postgres', q{CREATE TABLE t (n int); CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM call(NEW.n); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()});
$one->query('BEGIN; INSERT INTO t VALUES (1), (2); COMMIT');
adds(3, 'a deferred trigger charges at the commit');
$one->query('SELECT count(call(1)) FROM generate_series(1, 2000)');
adds(2000, 'two thousand calls in one statement');

# ---- the end of a connection ----

sub gone
{
	my ($session) = @_;
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = " . $session->pid) or die;
}
my $three = Session->new($node);
$three->query('BEGIN; SELECT call(7); SAVEPOINT a; SELECT call(7)');
$three->die_at_once;
gone($three);
adds(0, 'a client that dies charges nothing');
$three = Session->new($node);
$three->query('BEGIN; SELECT call(7)');
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $three->pid . ')');
gone($three);
adds(0, 'nor one whose backend is terminated');
$three = Session->new($node);
$three->send('SELECT call(7), pg_sleep(1000)');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'") or die;
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
like($three->answer, qr/57014/, 'a call is cancelled');
adds(0, 'and charges nothing');
is($three->query('SELECT call(1)'), 'allowed ' . left(1), 'its session goes on');
adds(1, 'as if nothing had been');

# ---- PREPARE TRANSACTION ----

my %prepared = (
	'an admitted call' => 'SELECT call(1)',
	'a refused call' => q{SELECT code FROM kavach_authorize('agt_nobody', 'run', 'x')},
	'a call that was rolled back to a savepoint' => 'SAVEPOINT a; SELECT call(1); ROLLBACK TO a',
	'usage' => q{SELECT tokens_charged FROM kavach_record_usage('agt_a', 1)},
	'an adjustment' => q{SELECT kavach_adjust('agt_a', 5, 'x')},
	'a change of an agent' => q{SELECT kavach_update_agent('agt_a', '{"name": "other"}')},
	'a new agent' => q{SELECT kavach_create_agent('agt_new', 'ann')},
	'a change of permissions' => q{SELECT kavach_grant_permission('agt_a', 'y', '{z}')},
	'a change of policies' => q{SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_calls_total": 1}')},
);
for my $what (sort keys %prepared)
{
	like($one->query("BEGIN; $prepared{$what}; PREPARE TRANSACTION 'p'"), qr/0A000/, "$what cannot be prepared");
}
is($one->query("BEGIN; SELECT count(*) FROM kavach.audit_log WHERE false; SELECT code FROM kavach_check_budget('agt_a'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'"),
	"0\nallowed", 'what only reads can');
# Repetitions change nothing, and so can be: their locks are the prepared transaction's then.
my $again = q{SELECT count(code) FROM generate_series(1, 40) n, kavach_authorize('agt_a', 'run', 'x', tokens_cost => 1, request_id => 'p' || n)};
is($one->query($again), '40', 'forty requests');
is($one->query("BEGIN; $again; PREPARE TRANSACTION 'p'"), '40', 'repeated, and prepared');
is($one->query(q{BEGIN; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 1, request_id => 'p41');
	SELECT count(*) FROM pg_locks WHERE (locktype, mode) = ('userlock', 'ExclusiveLock') AND pid = pg_backend_pid(); COMMIT}), "allowed\n1", 'the next transaction keeps its lock');
$one->query("COMMIT PREPARED 'p'");
adds(41, 'and each is charged once');
is($one->query("SELECT count(*) FROM pg_prepared_xacts"), '0', 'and nothing is left prepared');
adds(0, 'nor charged');

# ---- settings ----

# Whether the end of the transaction was flushed: what is beyond may be anybody's, such as a page pruned by a SELECT.
sub flushed
{
	my ($call) = @_;
	return $one->query("BEGIN; $call; SELECT pg_current_wal_insert_lsn() AS lsn \\gset\nCOMMIT; SELECT pg_current_wal_flush_lsn() > :'lsn'");
}
for my $commit ('off', 'local', 'remote_write')
{
	$one->query("SET synchronous_commit = $commit");
	is(flushed('SELECT call(1)'), 'allowed ' . left(1) . "\nt", "a decision is durable when it is acknowledged, though synchronous_commit is $commit");
	is($one->query('SHOW synchronous_commit'), $commit, 'which stays what it is');
	$used++;
}
$one->query('SET synchronous_commit = off');
foreach my $change ("SELECT FROM kavach_create_agent('agt_durable', 'ann')", "SELECT FROM kavach_revoke_agent('agt_durable')", "DELETE FROM kavach.agent WHERE agent_id = 'agt_durable'")
{
	is(flushed($change), 't', "so is $change");
}
$one->query('CREATE TABLE u (n int)');
is(flushed('INSERT INTO u VALUES (1)'), 'f', 'other transactions are left as they are');
$one->query('SET kavach.force_sync_commit = off');
is(flushed('SELECT call(1)'), 'allowed ' . left(1) . "\nf", 'a superuser may relax it');
$used++;
like($one->query(q{CREATE ROLE app LOGIN; SELECT kavach_grant_role('app', 'app'); SET ROLE app; SET kavach.force_sync_commit = off}), qr/42501/, 'and nobody else');
$one->query('RESET ROLE; RESET synchronous_commit; RESET kavach.force_sync_commit');

my $log = -s $node->logfile;
$one->query('SET kavach.log_rolled_back = on; BEGIN; SELECT call(1); SAVEPOINT a; SELECT call(21); SAVEPOINT b; SELECT call(22); RELEASE b; ROLLBACK TO a; SELECT call(2); COMMIT; BEGIN; SELECT call(23); ROLLBACK; RESET kavach.log_rolled_back; BEGIN; SELECT call(24); ROLLBACK');
my @lost = slurp_file($node->logfile, $log) =~ /ledger row rolled back: .*, (\d+) tokens/g;
is(join(' ', sort @lost), '21 22 23', 'kavach.log_rolled_back tells the log of what was rolled back');
adds(3, 'and of nothing else');

# ---- and across a crash ----

$one->query('SET synchronous_commit = off');
$one->query('SELECT call(100)');
$node->stop('immediate');
eval { $_->die_at_once } for $one, $two, $three;
$node->start;
$two = Session->new($node);
$used += 100;
is($two->query('SELECT call(1)'), 'allowed ' . left(1), 'what was acknowledged is there after a crash');
adds(1, 'and counted');
$two->quit;
$node->stop;
done_testing();
