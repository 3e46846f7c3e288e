// Kubeflow Trainer's controller manager with client limits that can be set: its own takes controller-runtime's.
package main

import (
	"errors"
	"flag"
	"net/http"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlpkg "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	jobset "sigs.k8s.io/jobset/api/jobset/v1alpha2"
	podgroups "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"

	trainer "github.com/kubeflow/trainer/v2/pkg/apis/trainer/v1alpha1"
	"github.com/kubeflow/trainer/v2/pkg/controller"
	"github.com/kubeflow/trainer/v2/pkg/runtime/core"
	"github.com/kubeflow/trainer/v2/pkg/util/cert"
	"github.com/kubeflow/trainer/v2/pkg/webhooks"
)

func must(err error) {
	if err != nil {
		ctrl.Log.Error(err, "ending")
		os.Exit(1)
	}
}

func main() {
	qps := flag.Float64("kube-api-qps", 20, "requests a second")
	burst := flag.Int("kube-api-burst", 30, "requests at once")
	flag.Parse()
	ctrl.SetLogger(zap.New())

	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, trainer.AddToScheme, jobset.AddToScheme, podgroups.AddToScheme,
	} {
		must(add(scheme))
	}
	config := ctrl.GetConfigOrDie()
	config.QPS, config.Burst = float32(*qps), *burst
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Client:                 client.Options{Cache: &client.CacheOptions{Unstructured: true}},
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: ":8081",
	})
	must(err)
	ready := make(chan struct{})
	must(cert.ManageCerts(manager, cert.Config{
		WebhookSecretName:        "kubeflow-trainer-webhook-cert",
		WebhookServiceName:       "kubeflow-trainer-controller-manager",
		WebhookConfigurationName: "validator.trainer.kubeflow.org",
	}, ready))
	must(manager.AddReadyzCheck("readyz", func(request *http.Request) error {
		select {
		case <-ready:
			return manager.GetWebhookServer().StartedChecker()(request)
		default:
			return errors.New("certificates are not ready")
		}
	}))
	ctx := ctrl.SetupSignalHandler()
	runtimes, err := core.New(ctx, manager.GetClient(), manager.GetFieldIndexer())
	must(err)
	go func() {
		<-ready
		_, err := controller.SetupControllers(manager, runtimes, ctrlpkg.Options{})
		must(err)
		_, err = webhooks.Setup(manager, runtimes)
		must(err)
	}()
	must(manager.Start(ctx))
}
