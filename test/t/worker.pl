# worker.pl: a month's missing partition is made by a worker, in a transaction of its own; where there is none to be
# had, or it would have to wait for the caller, by the caller.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('worker');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->append_conf('postgresql.conf', "lock_timeout = ${PostgreSQL::Test::Utils::timeout_default}s");    # rather fail than hang
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
});

my $call = q{SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 1)};
# But for what the worker that closes batches makes ahead, by the server's clock.
my $months = q{SELECT string_agg(replace(inhrelid::regclass::text, 'kavach.audit_log_', ''), ' ' ORDER BY 1) FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass AND inhrelid::regclass::text !~ '_2026_'};
sub months { return $node->safe_psql('postgres', $months) }
sub at { my ($month, $sql) = @_; return $node->safe_psql('postgres', "SET kavach.clock = '$month-15Z'; $sql") }

# Each year has months of its own: the one asked for, and the next.
my $one = Session->new($node);
$one->query("SET kavach.clock = '2030-05-15Z'; BEGIN");
is($one->query($call), 'allowed', 'the first call of a month');
is(months(), '2030_05 2030_06', 'its partition is there at once, and the next');
is(at('2030-05', $call), 'allowed', 'others use it while that call is open');
is($one->query('ROLLBACK; SELECT count(*) FROM kavach.audit_log_2030_05'), '1', 'it stays when that is rolled back');

is(at('2031-12', $call), 'allowed', 'a December');
is(months(), '2030_05 2030_06 2031_12 2032_01', 'has a January after it');
is(at('9999-12', $call), 'allowed', 'the last month has no next');

is(at('2033-01', "SELECT code, n FROM (SELECT count(*) AS n FROM kavach.audit_log) AS l, LATERAL kavach_authorize('agt_a', 'run', 'x', n) WHERE n > 0"),
	'allowed|3', 'a first call inside a query that reads the ledger');
my $reader = Session->new($node);
is($reader->query('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM kavach.ledger'), '4', 'while another reads it');
is(at('2034-01', $call), 'allowed', 'a month begins');
is($reader->query("SET kavach.clock = '2035-01-15Z'; $call"), 'allowed', 'and one for that reader');
is($reader->query('SELECT count(*) FROM kavach.ledger'), '5', 'who sees its own row and not the other');
$reader->query('COMMIT');

# The worker waits for nobody, least of all for its caller, who then helps himself.
is($one->query("SET kavach.clock = '2036-01-15Z'; BEGIN; LOCK TABLE kavach.audit_log; $call"), 'allowed', 'a caller who has locked the ledger');
$one->query('ROLLBACK');
unlike(months(), qr/2036/, 'has made the partition himself');
is($one->query("SET kavach.clock = '2037-01-15Z'; SET kavach.allow_alter = on; BEGIN; ALTER SCHEMA kavach RENAME TO k; ALTER SCHEMA k RENAME TO kavach; $call"), 'allowed', 'one who has locked the schema');
$one->query('COMMIT');
like(months(), qr/2037_01/, 'too');
is($one->query("SET kavach.clock = '2037-05-15Z'; BEGIN; LOCK TABLE pg_authid; LOCK TABLE pg_class; $call; ROLLBACK"), 'allowed', 'one who keeps even sessions from starting');
is($one->query("SET kavach.clock = '2038-01-15Z'; BEGIN; SET LOCAL kavach.allow_drop = on; DROP EXTENSION kavach CASCADE; CREATE EXTENSION kavach;
	SELECT FROM kavach_create_agent('agt_a', 'ann', permissions => '[{\"resource\": \"*\", \"actions\": [\"*\"]}]'); $call"), 'allowed', 'one whose ledger no one else can see yet');
$one->query('ROLLBACK');
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET default_transaction_read_only = on');
is(at('2039-01', "BEGIN READ WRITE; $call; COMMIT"), 'allowed', 'a database that is read only by default');
$node->safe_psql('postgres', 'SET default_transaction_read_only = off; ALTER DATABASE postgres RESET default_transaction_read_only');
like(months(), qr/2039_01 2039_02/, 'is not to the worker');

# A call that is cancelled on its way into another month's partition leaves nothing of the one that it came from behind.
is(at('2042-01', "$call; SET kavach.clock = '2042-02-15Z'; $call"), "allowed\nallowed", 'two months');
$one->query("SET kavach.clock = '2042-01-15Z'; $call; $call");
$reader->query('BEGIN; LOCK TABLE kavach.audit_log_2042_02 IN SHARE MODE');
$one->query("SET kavach.clock = '2042-02-15Z'");
$one->send($call);
$node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = " . $one->pid) or die;
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $one->pid . ')');
like($one->answer, qr/57014/, 'a call is cancelled at the lock of a partition');
$reader->query('COMMIT');
my $id = $one->query($call =~ s/code/audit_id/r);
my %rows = ('2042_01' => 3, '2042_02' => 2);
foreach my $month (sort keys %rows)
{
	is($node->safe_psql('postgres', "SELECT count(*) FROM kavach.audit_log_$month"), $rows{$month}, "$month has its rows");
	is($node->safe_psql('postgres', "SET enable_seqscan = off; SELECT count(*) FROM kavach.audit_log_$month WHERE agent_id = 'agt_a'"), $rows{$month}, 'and its index as many');
}
like($one->query("SELECT code FROM kavach_record_usage('agt_a', 1, '$id')"), qr/^recorded/, 'and the row is found by it');

# A caller who does not wait for his worker leaves the next one with a worker that is still at it.
$node->safe_psql('postgres', q{
	CREATE TABLE hold (a int);
	CREATE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM FROM public.hold; END $$;
	CREATE EVENT TRIGGER hold ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION hold();
});
$one->query("SET kavach.clock = '2039-05-15Z'");
$reader->query('BEGIN; LOCK TABLE hold');
$one->send($call);
# (the worker gives up after a second; where that is missed, the caller is where the worker was)
$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND (backend_type = 'kavach partition worker' OR pid = } . $one->pid . ')') or die;
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $one->pid . ')');
like($one->answer, qr/57014/, 'a caller is cancelled, his worker is not');
$one->send($call);
$node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = \'Lock\' AND pid = ' . $one->pid) or die;
$reader->query('COMMIT');
is($one->answer, 'allowed', 'the next caller waits for it');
$node->safe_psql('postgres', 'DROP EVENT TRIGGER hold');

# Nothing of what the ledger's owner can bring in is left for the worker's commit, where it would run as superuser.
$node->safe_psql('postgres', q{
	CREATE TABLE late (a int);
	CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
	CREATE FUNCTION early() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.late VALUES (1); END $$;
	CREATE EVENT TRIGGER early ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION early();
});
$one->query("SET kavach.clock = '2039-10-15Z'");
like($one->query($call), qr/42501/, 'a deferred trigger is refused');
is($node->safe_psql('postgres', 'DROP EVENT TRIGGER early; SELECT count(*) FROM late'), '0', 'and has not run');

$node->safe_psql('postgres', 'SET kavach.allow_alter = on; ALTER TABLE kavach.audit_log ADD COLUMN twice bigint GENERATED ALWAYS AS (2 * tokens_cost) STORED');
is(at('2039-08', "$call; SELECT twice FROM kavach.audit_log_2039_08"), "allowed\n2", 'a generated column of the ledger is one of new partitions, too');

# A partition is found by its bounds; a table that only has its name is none.
$node->safe_psql('postgres', q{
	ALTER TABLE kavach.audit_log_2039_02 RENAME TO renamed;
	CREATE TABLE kavach.audit_log_2040_01 (a int);
	CREATE TABLE kavach.half PARTITION OF kavach.audit_log (PRIMARY KEY (id)) FOR VALUES FROM ('2041-01-01Z') TO ('2041-01-16Z');
	CREATE TABLE kavach.rest PARTITION OF kavach.audit_log (PRIMARY KEY (id)) FOR VALUES FROM ('2041-01-16Z') TO ('2041-03-01Z');
});
is(at('2039-02', "$call; SELECT count(*) FROM kavach.renamed"), "allowed\n1", 'a renamed partition is used');
my ($status, undef, $err) = $node->psql('postgres', "SET kavach.clock = '2040-01-15Z'; $call");
like($err, qr/no partition for 2040-01.*audit_log_2040_01.*Attach it again/s, 'a table of its name that is no partition is not');
is($node->safe_psql('postgres', "SET kavach.clock = '2041-01-15 23:59:59Z'; $call; SET kavach.clock = '2041-01-16Z'; $call; SELECT (SELECT count(*) FROM kavach.half), count(*) FROM kavach.rest"),
	"allowed\nallowed\n1|1", 'partitions of other bounds are used as they are');

# Without workers all goes on, each caller for himself.
$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
my ($two, $three) = map { Session->new($node) } 1, 2;
is($two->query("SET kavach.clock = '2050-05-15Z'; BEGIN; $call"), 'allowed', 'without workers: the first call of a month');
$three->query("SET kavach.clock = '2050-05-15Z'");
$three->send($call);
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'userlock' AND NOT granted}) or die;
$two->query('COMMIT');
is($three->answer, 'allowed', 'the second waits for it, and uses its partition');
unlike(months(), qr/2050_06/, 'the next month is left to its own first call');
is(at('2050-06', $call), 'allowed', 'which makes it');
$node->safe_psql('postgres', q{CREATE TABLE kavach.audit_log_2050_08 (a int)});
is(at('2050-07', $call), 'allowed', 'one that cannot be made is in nobody\'s way before');
is($node->safe_psql('postgres', q{SELECT count(*) FILTER (WHERE kind = 'authorize'), sum(tokens_cost), (SELECT count(*) FROM kavach.audit_log_2050_05) FROM kavach.audit_log}),
	$node->safe_psql('postgres', q{SELECT calls, tokens, 2 FROM kavach.current_usage('agent', 'agt_a', 'total', true)}), 'and all of it is counted');
$node->stop;
done_testing();
