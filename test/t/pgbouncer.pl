# pgbouncer.pl: kavach behind pgbouncer in transaction pooling, many clients on two server connections.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use Judge;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;
use Time::HiRes qw(usleep);

# Debian has it in /usr/sbin, which is not in everybody's PATH.
local $ENV{PATH} = "$ENV{PATH}:/usr/sbin";
my ($version) = eval { `pgbouncer --version` } =~ /^PgBouncer (\d+\.\d+)/i;
plan skip_all => 'there is no pgbouncer' unless $version;
plan skip_all => 'no Unix-domain sockets' unless $use_unix_sockets;
plan skip_all => 'pgbouncer does not run as root' if $> == 0;
my ($major, $minor) = split /\./, $version;
my $keeps_statements = $major > 1 || $minor >= 21;    # max_prepared_statements

my $node = PostgreSQL::Test::Cluster->new('pgbouncer');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nmax_connections = 30");
$node->start;
my $superuser = getpwuid $>;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	CREATE ROLE app LOGIN;
	SELECT kavach_grant_role('app', 'app');
	SELECT kavach_create_agent('agt_' || n, 'user_' || n % 2, 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]') FROM generate_series(0, 9) n;
	SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_total": 1000000}') IS NOT NULL;
	SELECT kavach_authorize('agt_0', 'run', 'x');    -- makes the partition
});
Judge::install($node);

# ---- the pooler, on a socket in a folder of its own ----

my $folder = PostgreSQL::Test::Utils::tempdir_short();
append_to_file("$folder/users.txt", qq("$superuser" ""\n"app" ""\n));
append_to_file("$folder/pgbouncer.ini", join "\n",
	'[databases]',
	'postgres = host=' . $node->host . ' port=' . $node->port,
	'[pgbouncer]',
	"unix_socket_dir = $folder",
	'listen_port = 6432',    # names the socket: there is no listen_addr
	'auth_type = trust',
	"auth_file = $folder/users.txt",
	"admin_users = $superuser",
	'pool_mode = transaction',
	'default_pool_size = 2',
	'max_client_conn = 100',
	'ignore_startup_parameters = extra_float_digits',
	($keeps_statements ? 'max_prepared_statements = 100' : ()), '');
my $pgbouncer = IPC::Run::start([ 'pgbouncer', '-q', "$folder/pgbouncer.ini" ], '<', \undef, '>', \my $log, '2>&1');
END { $pgbouncer->kill_kill if $pgbouncer }

# What a Session connects to.
{
	package Pooler;
	sub new { my ($class, $user) = @_; return bless { user => $user }, $class }
	sub connstr { my ($self, $database) = @_; return "host=$folder port=6432 dbname=$database user=$self->{user}" }
}
my $pooler = Pooler->new($superuser);
for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	last if -S "$folder/.s.PGSQL.6432";
	usleep(100_000);
}

sub call { my ($n, $cost, $more) = @_; return "SELECT code FROM kavach_authorize('agt_$n', 'run', 'x', tokens_cost => $cost" . ($more // '') . ')' }

# Does something in two transactions that are open at once: on both server connections.
my ($one, $two, $three) = map { Session->new($pooler) } 1 .. 3;
sub on_both
{
	my ($sql) = @_;
	my @answers = map { $_->query("BEGIN; $sql") } $one, $two;
	$_->query('COMMIT') for $one, $two;
	return join ' ', @answers;
}
sub is_on_both { my ($sql, $answer, $name) = @_; return is(on_both($sql), "$answer $answer", $name) }

my %pids = map { $_ => 1 } split / /, on_both('SELECT pg_backend_pid()');
is(scalar keys %pids, 2, 'two transactions at once are on two server connections');
ok($pids{ $three->query('SELECT pg_backend_pid()') }, 'and a third client is on one of them');

# ---- what one server connection commits, the other obeys ----

my @changes = (
	[ q{SELECT kavach_revoke_agent('agt_1')}, 'agent_revoked' ],
	[ q{SELECT kavach_restore_agent('agt_1')}, 'allowed' ],
	[ q{SELECT kavach_revoke_permission(permission_id) FROM kavach.permission WHERE agent_id = 'agt_1'}, 'permission_denied' ],
	[ q{SELECT kavach_grant_permission('agt_1', '*', '{*}') > 0}, 'allowed' ],
	[ q{SELECT kavach_create_policy(agent_id => 'agt_1', limits => '{"max_tokens_cost_total": 0}') IS NOT NULL}, 'budget_exceeded' ],
	[ q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 1000}') FROM kavach.budget_policy WHERE scope = 'agent'}, 'allowed' ],
	[ q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 1}') FROM kavach.budget_policy WHERE scope = 'agent'}, 'budget_exceeded' ],
	[ q{SELECT kavach_update_policy(policy_id, enabled => false) FROM kavach.budget_policy WHERE scope = 'agent'}, 'allowed' ],
	[ q{SELECT kavach_update_agent('agt_1', '{"expires_at": "2001-01-01Z"}')}, 'agent_expired' ],
	[ q{SELECT kavach_update_agent('agt_1', '{"expires_at": null}')}, 'allowed' ]);
is_on_both(call(1, 1), 'allowed', 'both know the agent');
for (@changes)
{
	my ($change, $code) = @$_;
	is($three->query($change), 't', $change);
	is_on_both(call(1, 1), $code, "… and on both connections: $code");
}
$three->query(q{SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy WHERE scope = 'agent'});

# ---- open transactions, and how they end ----

$three->query(q{SELECT kavach_create_policy(agent_id => 'agt_2', limits => '{"max_tokens_cost_total": 10}')});
is($one->query('BEGIN; ' . call(2, 8)), 'allowed', 'a call in an open transaction');
is($two->query(call(2, 3)), 'budget_pending', 'is pending for others');
like($one->query('SELECT 1 / 0'), qr/22012/, 'an error in it');
like($one->query(call(2, 1)), qr/25P02/, 'ends it');
$one->query('ROLLBACK');
is_on_both(call(2, 0), 'allowed', 'both connections are clean');
is(Judge::faults($node), '', 'nothing is left');
$one->query('BEGIN; ' . call(2, 8));
$one->die_at_once;
$two->until_row(q{SELECT FROM kavach.counters WHERE subject = 'agt_2' AND period = 'total' AND tokens_pending = 0});
is($two->query(call(2, 10)), 'allowed', 'a client that goes away in a transaction gives back what it had charged');
is(Judge::faults($node), '', 'nothing is left');
$one = Session->new($pooler);

# ---- settings and roles belong to a transaction ----

is($one->query("BEGIN; SET LOCAL kavach.clock = '2021-05-06 07:08:09+00'; " . call(3, 1) . '; COMMIT'), 'allowed', 'SET LOCAL kavach.clock');
is_on_both(q{SELECT current_setting('kavach.clock') LIKE '2026%'}, 't', 'ends with its transaction');
is($one->query(q{SELECT count(*) FROM kavach.audit_log WHERE ts = '2021-05-06 07:08:09+00'}), '1', 'for which it held');
is($one->query('BEGIN; SET LOCAL ROLE app; ' . call(3, 1) . '; COMMIT; SELECT current_user = session_user'), "allowed\nt", 'SET LOCAL ROLE');
like($one->query(q{BEGIN; SET LOCAL ROLE app; SELECT count(*) FROM kavach.audit_log}), qr/42501/, 'and with the rights of that role alone');
$one->query('ROLLBACK');
like($one->query('BEGIN; SET LOCAL ROLE pg_monitor; ' . call(3, 1)), qr/42501/, 'of one that has been granted nothing too');
$one->query('ROLLBACK');
is_on_both('SELECT current_user = session_user; ' . call(3, 1), "t\nallowed", 'neither is left on a connection');
is_on_both('SET ROLE app; ' . call(3, 1) . '; RESET ROLE; SELECT count(*) > 0 FROM kavach.ledger', "allowed\nt", 'SET ROLE and RESET in one transaction');
is_on_both(q{SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_cursors) + (SELECT count(*) FROM pg_locks WHERE locktype IN ('userlock', 'advisory') AND pid <> pg_backend_pid())
	+ (SELECT count(*) FROM pg_class WHERE relpersistence = 't')}, '0', 'kavach leaves no prepared statement, cursor, lock or temporary table there');

# ---- DISCARD ALL, as server_reset_query has it, between the transactions and for everybody ----

is($one->query('DISCARD ALL; ' . call(4, 1) . '; DISCARD ALL; ' . call(4, 1)), "allowed\nallowed", 'DISCARD ALL between calls');
my $app = Session->new(Pooler->new('app'));
is($app->query(call(4, 1)), 'allowed', 'the user app has a pool of its own');
like($app->query('SELECT count(*) FROM kavach.ledger'), qr/42501/, 'and no other rights than its own');
$app->quit;

# ---- budgets, exact over all ----

sub pgbench
{
	my ($name, $user, $mode, $script, $clients, $transactions) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/script.sql';
	append_to_file($file, $script);
	$node->command_ok([ 'pgbench', '-n', '-M', $mode, '-c', $clients, '-j', '2', '-t', $transactions, '-f', $file, '-h', $folder, '-p', '6432', '-U', $user, 'postgres' ], $name);
	return;
}

# A limit of 300 for each user, of which there are two, and 500 calls for each.
sub race
{
	my ($mode, $user) = @_;
	$node->safe_psql('postgres', q{
		DROP TABLE IF EXISTS seen;
		CREATE TABLE seen AS SELECT id FROM kavach.audit_log;
		SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy WHERE scope = 'user';
		SELECT kavach_create_policy(user_id => u.user_id, limits => jsonb_build_object('max_tokens_cost_total', 300 + coalesce(sum(tokens_cost), 0)))
		  FROM kavach.agent u LEFT JOIN kavach.audit_log l USING (user_id) WHERE u.agent_id IN ('agt_0', 'agt_1') GROUP BY u.user_id});
	pgbench("$mode, as $user: twenty clients, fifty calls each", $user, $mode, "SELECT code FROM kavach_authorize('agt_' || :client_id % 10, 'run', 'x', tokens_cost => 1);\n", 20, 50);
	is($node->safe_psql('postgres', q{SELECT user_id, count(*), sum(tokens_cost) FROM kavach.audit_log WHERE id NOT IN (SELECT id FROM seen) GROUP BY 1 ORDER BY 1}),
		"user_0|500|300\nuser_1|500|300", 'every call is there, and exactly the limit admitted');
	is(Judge::faults($node), '', 'nothing is left');
	return;
}
race('simple', $superuser);
race('extended', 'app');
SKIP:
{
	skip "pgbouncer $version keeps no prepared statements in transaction pooling", 1 unless $keeps_statements;
	race('prepared', $superuser);
}
is($node->safe_psql('postgres', q{SELECT max(n) <= 2 FROM (SELECT count(*) AS n FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY usename) AS pool}),
	't', 'all that on two server connections for each user');

# Settlements and rollbacks, with DISCARD ALL after every transaction.
$node->safe_psql('postgres', q{SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy WHERE scope <> 'tenant'});
my $admin = "host=$folder port=6432 dbname=pgbouncer user=$superuser";
IPC::Run::run([ 'psql', '-Xq', '-d', $admin, '-c', 'SET server_reset_query_always = 1' ], '>', \my $out, '2>&1') or die 'no admin console';
pgbench('calls, settlements and rollbacks, each followed by DISCARD ALL', 'app', 'extended', q{
\set cost random(1, 40)
\set undo random(1, 3)
BEGIN;
SELECT audit_id FROM kavach_authorize('agt_' || :client_id % 10, 'run', 'x', tokens_cost => :cost)
\gset
\if :undo = 1
ROLLBACK;
\else
COMMIT;
SELECT kavach_record_usage('agt_' || :client_id % 10, :cost / 2, :audit_id);
\endif
}, 20, 20);
is(Judge::faults($node), '', 'nothing is left');
ok($node->safe_psql('postgres', q{SELECT count(*) FROM kavach.audit_log WHERE settles IS NOT NULL}) > 0, 'and some were settled');

$_->quit for $one, $two, $three;
$pgbouncer->signal('TERM');
eval { $pgbouncer->finish };
undef $pgbouncer;
$node->stop;
done_testing();
