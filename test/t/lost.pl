# lost.pl: a connection may be lost at any point. Nothing stays pending or pinned, the ledger and the budgets
# agree, and a client that does not know what became of its call finds out by asking again.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Judge;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;
use Wire;

plan skip_all => 'no Unix-domain sockets' unless $use_unix_sockets;

my $node = PostgreSQL::Test::Cluster->new('lost');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 100000}}]'),
	       kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 1000000}');
	CREATE FUNCTION call(tokens bigint, request text DEFAULT NULL) RETURNS text LANGUAGE sql BEGIN ATOMIC
	  SELECT code || ' ' || audit_id FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => tokens, request_id => request); END;
	SELECT call(1);
});
Judge::install($node);

my $watch = Session->new($node);
my $spent = 1;
my $number = 0;

# After a loss: as many tokens are charged as should be, and nothing is left.
sub after
{
	my ($client, $charged, $name) = @_;
	$client->close;
	$watch->until_gone($client->{pid});
	$spent += $charged;
	is($watch->query('SELECT used FROM kavach.budget_status'), $spent, $name);
	is($watch->query('SELECT * FROM fault'), '', 'nothing is left');
	return;
}

# ---- between authorize and commit ----

my $client = Wire->new($node);
like($client->query('BEGIN; SELECT call(10)'), qr/^allowed/, 'a call in a transaction');
is($watch->query('SELECT used, tokens_pending FROM kavach.budget_status, kavach.counters WHERE (counters.scope, counters.period) = ($$user$$, $$total$$)'), "$spent|10", 'is pending');
after($client, 0, 'its client goes away: it is not charged');

$client = Wire->new($node);
$client->query('BEGIN; SELECT call(10); SAVEPOINT a; SELECT call(20); SAVEPOINT b; SELECT call(40); ROLLBACK TO b');
after($client, 0, 'with savepoints');

$client = Wire->new($node);
$client->query('BEGIN; SELECT call(10); SELECT 1 / 0');
after($client, 0, 'in a transaction that has failed');

my $id = $watch->query(q{SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 50)});
$spent += 50;
$client = Wire->new($node);
is($client->query("BEGIN; SELECT tokens_charged FROM kavach_record_usage('agt_a', 20, '$id')"), '-30', 'a settlement in a transaction');
after($client, 0, 'its client goes away: it gives nothing back');
is($watch->query("SELECT tokens_charged FROM kavach_record_usage('agt_a', 20, '$id')"), '-30', 'and can be made again');
$spent -= 30;

# ---- in the middle of a message, or before its Sync ----

my $commit = Wire::query_message('COMMIT');
for my $bytes (1, 4, 5, length($commit) - 1)
{
	$client = Wire->new($node);
	$client->query('BEGIN; SELECT call(10)');
	$client->send(substr $commit, 0, $bytes);
	after($client, 0, "after $bytes bytes of COMMIT it is not charged");
}
$client = Wire->new($node);
$client->send(Wire::execute_messages('SELECT call(10)') . Wire::message('H', ''));
like($client->until_message('C'), qr/^allowed/, 'answered, but without a Sync not committed');
after($client, 0, 'is not charged');
$client = Wire->new($node);
$client->send(Wire::execute_messages('SELECT call(10)') . Wire::execute_messages('SELECT call(20)') . Wire::sync_message());
is($client->until_ready =~ s/ .*//gr, "allowed\nallowed", 'two calls of a pipeline');
after($client, 30, 'are charged with its Sync');

# ---- the client cannot know: COMMIT, or a call by itself, is sent, and the answer is lost ----

my %last_word = (
	'a call' => sub { Wire::query_message(shift) },
	'a COMMIT' => sub { $commit },
	'a call and its Sync' => sub { Wire::execute_messages(shift) . Wire::sync_message() });
for my $sent (sort keys %last_word)
{
	# Every other time the server is told to let go as well, which may come before or after the commit.
	for my $round (1 .. 6)
	{
		my $request = 'request-' . ++$number;
		my $call = "SELECT call(10, '$request')";
		$client = Wire->new($node);
		$client->query("BEGIN; $call") if $sent eq 'a COMMIT';
		$client->send($last_word{$sent}->($call));
		$watch->query("SELECT pg_terminate_backend($client->{pid})") if $round % 2;
		$client->close;
		$watch->until_gone($client->{pid});
		note("$sent: ", $watch->query("SELECT count(*) || ' committed' FROM kavach.audit_log WHERE request_id = '$request'"));
		my $again = Wire->new($node);
		like($again->query($call), qr/^allowed/, "$sent that nobody was told of, asked again");
		after($again, 10, 'is charged once');
	}
}

# ---- the answer is under way, and nobody reads it ----

# Some megabytes of rows: more than the sockets hold, so that the server waits for the client to read.
my $many = 'SELECT call(1), repeat($$x$$, 1000) FROM generate_series(1, 5000)';
for my $sql ($many, "COPY ($many) TO STDOUT", "BEGIN; $many")
{
	$client = Wire->new($node);
	$client->send(Wire::query_message($sql));
	$watch->until_row("SELECT FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND pid = $client->{pid}");
	after($client, 0, 'calls whose answer cannot be sent are not charged: ' . substr($sql, 0, 10));
}

# ---- in a wait ----

$client = Wire->new($node, client_connection_check_interval => '10ms');
my $holder = Wire->new($node);
$holder->query("BEGIN; SELECT call(10, 'held')");
$client->send(Wire::query_message("SELECT call(10, 'held')"));
$watch->until_row("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'userlock' AND pid = $client->{pid}");
$client->close;
$watch->until_gone($client->{pid});
like(slurp_file($node->logfile), qr/\[$client->{pid}\] .*FATAL:  connection to client lost/, 'a client that goes away in a wait is noticed with client_connection_check_interval');
is($watch->query("SELECT state FROM pg_stat_activity WHERE pid = $holder->{pid}"), 'idle in transaction', 'while the other still makes it wait');
after($holder, 0, 'and who made it wait goes away as well');

$client = Wire->new($node);
$holder = Wire->new($node);
$holder->query("BEGIN; SELECT call(10, 'held')");
$client->send(Wire::query_message("SELECT call(10, 'held')"));
$watch->until_row("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'userlock' AND pid = $client->{pid}");
$client->close;
$holder->query('COMMIT');
$watch->until_gone($client->{pid});
after($holder, 10, 'without it, it is the other that is charged, once');

$watch->quit;
$node->stop;
done_testing();
